/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Repairs that crash at every write, with every single unflushed write missing, or alone, or torn. */
#include "check_damages.h"
#include "repair_disk.h"

#define PAIRS (getenv("TEST_SCALE") && !strcmp(getenv("TEST_SCALE"), "long") ? 1 : 7)

/* The damaged image as a disk; NULL: our check refuses it. */
static struct disk *damaged(const struct damage *d)
{
	struct img m = img_load(d->image);

	d->fn(&m);
	img_store(&m, "damaged");
	free(m.b);
	return ours("damaged").refused ? NULL : disk_load("damaged");
}

static void test_damages(void **state_)
{
	struct qcow2_repair_result res;
	unsigned states = 0;
	struct disk *d;
	size_t i;

	need_qemu_img();
	make_victims();
	for (i = 0; i < COUNT(damages); i++) {
		d = damaged(&damages[i]);
		if (!d)
			continue;
		if (disk_be(d, 4, 4) >= 3)
			disk_set_be(d, 72, disk_be(d, 72, 8) | QCOW2_INCOMPAT_DIRTY, 8);
		states += crash_states(damages[i].name, d, QCOW2_REPAIR_ALL, &res);
		disk_free(d);
	}
	print_message("%u states\n", states);
	assert_true(states > 500);
}

/* What @b changed in the sound image is changed in @a, too. False: one of them changed its size. */
static bool both(struct img *a, const struct damage *b)
{
	struct img sound = img_load(b->image), m = img_load(b->image);
	bool ok;
	size_t i;

	b->fn(&m);
	ok = a->len == sound.len && m.len == sound.len;
	for (i = 0; ok && i < m.len; i++)
		if (m.b[i] != sound.b[i])
			a->b[i] = m.b[i];
	free(sound.b);
	free(m.b);
	return ok;
}

/* Two at once: what one kind of damage makes of the repair of another. */
static void test_pairs(void **state_)
{
	struct qcow2_repair_result res;
	unsigned states = 0, pairs = 0;
	char name[128];
	struct disk *d;
	struct img m;
	size_t i, j;

	need_qemu_img();
	make_victims();
	for (i = 0; i < COUNT(damages); i++)
		for (j = i + 1; j < COUNT(damages); j += PAIRS) {
			if (strcmp(damages[i].image, damages[j].image))
				continue;
			m = img_load(damages[i].image);
			damages[i].fn(&m);
			if (both(&m, &damages[j])) {
				img_store(&m, "damaged");
				snprintf(name, sizeof(name), "%s + %s", damages[i].name, damages[j].name);
				d = ours("damaged").refused ? NULL : disk_load("damaged");
				if (d) {
					states += crash_states(name, d, QCOW2_REPAIR_ALL, &res);
					disk_free(d);
					pairs++;
				}
			}
			free(m.b);
		}
	print_message("%u pairs, %u states\n", pairs, states);
	assert_true(pairs > 100);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_damages),
		cmocka_unit_test(test_pairs),
	};

	return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
