/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The checker against qemu-img check on hand-made damage (check_damages.h). */
#include "check_damages.h"

static void judge_damage(const struct damage *d)
{
	struct img m = img_load(d->image);
	struct verdict a, b;
	bool ok;

	d->fn(&m);
	img_store(&m, "damaged");
	free(m.b);
	a = ours("damaged");
	b = theirs("damaged");
	switch (d->how) {
	case EXACT:
		ok = !a.refused && !b.refused && a.errors == b.errors && a.leaks == b.leaks;
		break;
	case VERDICT:
		ok = !a.refused && a.errors && (b.refused || b.errors);
		ok = ok && (b.refused || !a.leaks == !b.leaks);
		break;
	case STRICT:
		ok = !a.refused && a.errors && a.only_strict && !b.refused && !b.errors && a.leaks == b.leaks;
		break;
	default:
		ok = a.refused && (b.refused || b.errors);
	}
	if (!ok) {
		show(d->name, &a, &b);
		fail();
	}
}

static void test_damage(void **state)
{
	size_t i;

	need_qemu_img();
	make_victims();
	for (i = 0; i < COUNT(damages); i++)
		judge_damage(&damages[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_damage),
	};

	return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
