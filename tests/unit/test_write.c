// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The writer: in place, allocating, around partial clusters (fresh, used before, zero with a host cluster,
 * shared, compressed), below the host's direct I/O granularity, and several writers of one cluster.
 */
#include "compressed.h"

#define CS 4096ull

static struct disk *d;
static struct qcow2_image *img;

static void start(const struct spec *s)
{
	d = disk_make(s);
	img = open_image(d, NULL);
}

static void finish(void)
{
	close_image(img);
	assert_clean(d);
	disk_free(d);
}

static void reopen(void)
{
	close_image(img);
	img = open_image(d, NULL);
}

/* A write in place is one host write, of exactly its bytes, and changes no metadata. */
static void in_place(void **state)
{
	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, 4 * CS, 1), 0);
	reopen();
	d->record = true;
	assert_int_equal(do_write(img, CS + 512, 1024, 2), 0);
	assert_int_equal(d->events, 1);
	assert_int_equal(d->event[0].off, disk_host(d, CS) + 512);
	assert_int_equal(d->event[0].len, 1024);
	assert_false(qcow2_dirty(img));
	reads(img, 0, CS + 512, 1);
	reads(img, CS + 512, 1024, 2);
	reads(img, CS + 1536, 2 * CS, 1);
	finish();
}

/* Many clusters: one allocation, one host write. */
static void allocates_contiguously(void **state)
{
	start(&(struct spec){ 0 });
	d->record = true;
	assert_int_equal(do_write(img, 8 * CS, 16 * CS, 3), 0);
	assert_int_equal(d->events, 2); /* the new table and the data */
	assert_int_equal(d->event[1].len, 16 * CS);
	reads(img, 8 * CS, 16 * CS, 3);
	reads(img, 7 * CS, CS, 0);
	finish();
}

/* Past the end of the file the rest of a cluster is zero by itself; elsewhere zeroes are written. */
static void partial_fresh(void **state)
{
	unsigned zeroed;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 512, 512, 4), 0);
	assert_int_equal(d->seen[HOST_ZERO], 0);
	reads(img, 0, 512, 0);
	reads(img, 512, 512, 4);
	reads(img, 1024, CS, 0);
	assert_int_equal(do_write(img, 2 * CS, 4 * CS, 5), 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 2 * CS, 4 * CS, 0), 0);
	d->fail = 1u << HOST_PUNCH; /* the host keeps the old bytes */
	d->fail_err = -EOPNOTSUPP;
	d->fail_nth = 1;
	d->fail_always = true;
	quiesce(img, d);
	zeroed = d->seen[HOST_ZERO];
	assert_int_equal(do_write(img, 40 * CS + 1024, CS, 6), 0); /* over them */
	assert_true(d->seen[HOST_ZERO] >= zeroed + 2);
	reads(img, 40 * CS, 1024, 0);
	reads(img, 40 * CS + 1024, CS, 6);
	reads(img, 41 * CS + 1024, CS - 1024, 0);
	finish();
}

/* Space of a block device that was never used may hold anything. */
static void partial_on_a_device(void **state)
{
	uint8_t junk[CS];

	d = disk_make(&(struct spec){ 0 });
	d->fixed_size = true;
	memset(junk, 0xee, sizeof(junk));
	for (unsigned i = 4; i < 64; i++)
		disk_put(d, i * CS, junk, CS);
	img = open_image(d, NULL);
	assert_int_equal(do_write(img, 512, 512, 4), 0);
	assert_int_equal(do_write(img, 10 * CS - 512, 1024, 4), 0);
	reads(img, 0, 512, 0);
	reads(img, 1024, 9 * CS - 1536, 0);
	reads(img, 10 * CS + 512, CS - 512, 0);
	finish();
}

/* A failed write leaves bytes in clusters past the old end: they are not fresh any more. */
static void partial_after_failure(void **state)
{
	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, CS, 1), 0);
	disk_fail(d, 1u << HOST_WRITE, -ENOSPC, 1, false);
	assert_int_equal(do_write(img, 8 * CS, 4 * CS, 9), -ENOSPC);
	reads(img, 8 * CS, 4 * CS, 0);
	quiesce(img, d); /* twice over: the clusters come back */
	quiesce(img, d);
	assert_int_equal(do_write(img, 20 * CS + 512, 512, 2), 0);
	reads(img, 20 * CS, 512, 0);
	reads(img, 20 * CS + 1024, CS - 1024, 0);
	finish();
}

/* Zero with a host cluster: that cluster is used, what surrounds the data becomes zero there. */
static void zero_alloc_reused(void **state)
{
	uint64_t host;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, 4 * CS, 0x77), 0);
	assert_int_equal(do_zero(img, 0, 4 * CS, QCOW2_REQ_NO_UNMAP), 0);
	quiesce(img, d);
	host = disk_host(d, CS);
	assert_int_equal(disk_entry(d, CS), host | QCOW2_COPIED | QCOW2_L2_ZERO);
	assert_int_equal(do_write(img, CS + 512, CS, 5), 0);
	quiesce(img, d);
	assert_int_equal(disk_entry(d, CS), host | QCOW2_COPIED);
	reads(img, 0, CS + 512, 0);
	reads(img, CS + 512, CS, 5);
	reads(img, 2 * CS + 512, 2 * CS - 512, 0);
	finish();
}

/* The same shared with a snapshot: not ours to write. */
static void zero_alloc_shared(void **state)
{
	uint64_t host;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, 2 * CS, 0x77), 0);
	assert_int_equal(do_zero(img, 0, 2 * CS, QCOW2_REQ_NO_UNMAP), 0);
	close_image(img);
	disk_snapshot(d);
	img = open_image(d, NULL);
	host = disk_host(d, CS);
	assert_int_equal(do_write(img, CS + 512, 512, 5), 0);
	quiesce(img, d);
	assert_true(disk_host(d, CS) != host);
	reads(img, 0, CS + 512, 0);
	reads(img, CS + 512, 512, 5);
	reads(img, CS + 1024, CS - 1024, 0);
	finish();
}

static void over_compressed(void **state)
{
	uint64_t old;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 10 * CS, CS, 1), 0);
	close_image(img);
	disk_compressed(d, CS, 0x61);
	disk_compressed(d, 2 * CS, 0x62);
	assert_clean(d);
	img = open_image(d, NULL);
	reads(img, CS, CS, 0x61);
	old = disk_be(d, disk_l2_at(d, CS), 8) & 0x3ffffffffffffffull;
	assert_int_equal(do_write(img, CS + 1024, CS, 7), 0);
	reads(img, CS, 1024, 0x61);
	reads(img, CS + 1024, CS, 7);
	reads(img, 2 * CS + 1024, CS - 1024, 0x62);
	quiesce(img, d);
	assert_int_equal(disk_entry(d, CS) & QCOW2_L2_COMPRESSED, 0);
	assert_int_equal(disk_refcount(d, old / CS), 0);
	finish();
}

/* Bad compressed data around a write: the write fails, nothing changes, the image stays usable. */
static void over_bad_compressed(void **state)
{
	uint64_t before;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 10 * CS, CS, 1), 0);
	close_image(img);
	disk_compressed(d, CS, 0x61);
	before = disk_entry(d, CS);
	disk_put(d, before & 0x3ffffffffffffffull, "\xff\xff\xff\xff", 4);
	img = open_image(d, NULL);
	assert_int_equal(do_write(img, CS + 1024, 512, 7), -EIO);
	assert_int_equal(do_write(img, 10 * CS, 512, 7), 0);
	assert_int_equal(do_write(img, CS, CS, 8), 0); /* the whole of it: nothing to read */
	reads(img, CS, CS, 8);
	finish();
}

/* Direct I/O of 4096: every host I/O is aligned (memfile.h asserts it), neighbours survive, also all at once.
 */
static void unaligned_to_dio(void **state)
{
	struct job j[16];
	unsigned i;

	d = disk_make(&(struct spec){ .bits = 14 });
	d->dio_align = 4096;
	img = open_image(d, NULL);
	assert_int_equal(do_write(img, 512, 512, 1), 0); /* allocates */
	reads(img, 0, 512, 0);
	reads(img, 1024, 4 * CS, 0);
	for (i = 0; i < 16; i++)
		job_start(&j[i], img, QCOW2_WRITE, 8192 + 512 * i, 512, 10 + (int)i); /* blocks shared by 8 */
	settle(img, d);
	for (i = 0; i < 16; i++) {
		assert_int_equal(job_end(&j[i]), 0);
		reads(img, 8192 + 512 * i, 512, 10 + (int)i);
	}
	reads(img, 512, 512, 1);
	reads(img, 1024, 8192 - 1024, 0);
	assert_int_equal(do_write(img, 3 * 16384 - 512, 1024, 3),
			 0); /* the end of one, the start of the next */
	reads(img, 3 * 16384 - 1024, 512, 0);
	reads(img, 3 * 16384 - 512, 1024, 3);
	reads(img, 3 * 16384 + 512, 512, 0);
	assert_int_equal(do_zero(img, 8192 + 512, 1024, 0), 0);
	reads(img, 8192, 512, 10);
	reads(img, 8192 + 512, 1024, 0);
	reads(img, 8192 + 1536, 512, 13);
	finish();
}

/* Writers of one cluster that does not exist yet: one allocates, nobody's bytes are lost. */
static void concurrent_writers(void **state)
{
	struct qcow2_stats st;
	struct job j[8];
	unsigned i;

	start(&(struct spec){ 0 });
	for (i = 0; i < 8; i++)
		job_start(&j[i], img, QCOW2_WRITE, 5 * CS + 512 * i, 512, 20 + (int)i);
	while (qcow2_run(img, true))
		;
	for (i = 0; i < 8; i++) {
		assert_int_equal(job_end(&j[i]), 0);
		reads(img, 5 * CS + 512 * i, 512, 20 + (int)i);
	}
	qcow2_get_stats(img, &st);
	assert_int_equal(st.allocated, 2); /* the cluster and its L2 table */
	finish();
}

/* A read started after a write that is under way sees the old or the new bytes of a sector, never others; one
 * that overlaps an allocation waits for it. */
static void read_during_allocation(void **state)
{
	struct job w, r;
	unsigned i;

	start(&(struct spec){ 0 });
	d->hold = WRITES;
	job_start(&w, img, QCOW2_WRITE, 5 * CS, CS, 20);
	settle(img, d);
	job_start(&r, img, QCOW2_READ, 5 * CS, CS, 1);
	settle(img, d);
	assert_false(r.done);
	d->hold = 0;
	settle(img, d);
	for (i = 0; i < CS; i++)
		assert_int_equal(((uint8_t *)r.buf)[i], 20);
	assert_int_equal(job_end(&w), 0);
	assert_int_equal(job_end(&r), 0);
	finish();
}

/* The mapping changes only when the data is there: until then a crash or a reader finds the old one. */
static void linked_last(void **state)
{
	struct job w;

	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, CS, 1), 0);
	quiesce(img, d);
	d->hold = WRITES;
	job_start(&w, img, QCOW2_WRITE, 5 * CS, CS, 20);
	settle(img, d);
	assert_false(w.done);
	disk_fail(d, 1u << HOST_WRITE, -EIO, 1, false);
	d->hold = 0;
	settle(img, d);
	assert_int_equal(job_end(&w), -EIO);
	reads(img, 5 * CS, CS, 0);
	quiesce(img, d);
	assert_int_equal(disk_entry(d, 5 * CS), 0);
	finish();
}

/* The last cluster goes past the image's end. */
static void at_the_end(void **state)
{
	start(&(struct spec){ .size = 10 * CS + 1536 });
	assert_int_equal(do_write(img, 10 * CS + 1024, 512, 4), 0);
	reads(img, 10 * CS, 1024, 0);
	reads(img, 10 * CS + 1024, 512, 4);
	assert_int_equal(do_write(img, 10 * CS + 1536, 512, 4), -EINVAL);
	assert_int_equal(do_write(img, 10 * CS + 1024, 1024, 4), -EINVAL);
	assert_int_equal(do_write(img, 100, 512, 4), -EINVAL);
	assert_int_equal(do_write(img, 512, 100, 4), -EINVAL);
	assert_int_equal(do_req(img, QCOW2_WRITE, UINT64_MAX - 511, 512, 4), -EINVAL);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 512, UINT64_MAX - 511, 4), -EINVAL);
	assert_int_equal(do_req(img, QCOW2_WRITE, 10 * CS + 1536, 0, 0), 0);
	finish();
}

/* A run over everything at once: in place, unallocated, zero, compressed, shared. */
static void mixture(void **state)
{
	start(&(struct spec){ 0 });
	assert_int_equal(do_write(img, 0, 12 * CS, 1), 0);
	close_image(img);
	disk_snapshot(d);
	img = open_image(d, NULL);
	assert_int_equal(do_write(img, 2 * CS, CS, 2), 0);
	assert_int_equal(do_req(img, QCOW2_DISCARD, 4 * CS, 2 * CS, 0), 0);
	assert_int_equal(do_write(img, 7 * CS, CS, 2), 0);
	assert_int_equal(do_zero(img, 7 * CS, CS, QCOW2_REQ_NO_UNMAP), 0);
	assert_int_equal(do_write(img, 512, 11 * CS, 3), 0);
	reads(img, 0, 512, 1);
	reads(img, 512, 11 * CS, 3);
	reads(img, 11 * CS + 512, CS - 512, 1);
	reads(img, 12 * CS, 8 * CS, 0);
	finish();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(in_place),
		cmocka_unit_test(allocates_contiguously),
		cmocka_unit_test(partial_fresh),
		cmocka_unit_test(partial_on_a_device),
		cmocka_unit_test(partial_after_failure),
		cmocka_unit_test(zero_alloc_reused),
		cmocka_unit_test(zero_alloc_shared),
		cmocka_unit_test(over_compressed),
		cmocka_unit_test(over_bad_compressed),
		cmocka_unit_test(unaligned_to_dio),
		cmocka_unit_test(concurrent_writers),
		cmocka_unit_test(read_during_allocation),
		cmocka_unit_test(linked_last),
		cmocka_unit_test(at_the_end),
		cmocka_unit_test(mixture),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
