// SPDX-License-Identifier: GPL-2.0
/*
 * The disk: asks the program about each plain read and write, splits, and hands on. Owns the life of struct
 * ublk_bpf_disk.
 *
 * Whoever submits a bio has the disk open until the bio ends, and a disk that is open is not destroyed:
 * nothing here touches the disk after bio_endio(), except a ->submit_bio, which del_gendisk() waits for, and
 * punt(). A disk is in the index from before its partition scan, so that the daemon, which serves that scan,
 * can already drain it.
 */
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/xarray.h>

#include "acct.h"
#include "core.h"
#include "trace.h"

#define RESERVE 64 /* splits and redirected bios that get memory whatever happens */
#define MAX_ID ((1U << 20) - 1)

static unsigned int test_delay_us;
module_param(test_delay_us, uint, 0644);
MODULE_PARM_DESC(test_delay_us, "for tests: sleep this long between a hit's lookup and its I/O");

unsigned int ublk_bpf_test_no_memory;
module_param_named(test_no_memory, ublk_bpf_test_no_memory, uint, 0644);
MODULE_PARM_DESC(test_no_memory, "for tests: one in this many hits or splits finds no memory");

static DEFINE_XARRAY_ALLOC(disks);

/* A bio on its way below: the upper bio stays behind, for accounting and for its own device's sake. */
struct redirected {
	unsigned long start;
	struct bio clone; /* last: its inline vectors follow */
};

static void redirected_end(struct bio *clone)
{
	struct redirected *r = container_of(clone, struct redirected, clone);
	struct bio *bio = clone->bi_private;
	unsigned long start = r->start;

	bio->bi_status = clone->bi_status;
	bio_put(clone);
	bio_end_io_acct(bio, start);
	bio_endio(bio);
}

void ublk_bpf_redirect(struct ublk_bpf_disk *disk, struct bio *bio, unsigned long start)
{
	gfp_t gfp = bio->bi_opf & REQ_NOWAIT ? GFP_NOWAIT : GFP_NOIO;
	struct bio *clone = bio_alloc_clone(disk->lower, bio, gfp, &disk->clone_bios);
	struct redirected *r;

	if (!clone) {
		bio_end_io_acct(bio, start);
		bio_wouldblock_error(bio);
		return;
	}
	r = container_of(clone, struct redirected, clone);
	r->start = start;
	clone->bi_private = bio;
	clone->bi_end_io = redirected_end;
	clone->bi_opf |= REQ_META | REQ_SWAP; /* UBLK_BPF_MARK */
	clone->bi_write_hint = WRITE_LIFE_EXTREME; /* bios with different hints are not merged */
	ublk_bpf_count(disk, misses);
	submit_bio_noacct(clone);
}

/*
 * What is swapped out goes below: it comes in hundreds when there is no memory, its bios are of the set that
 * a file system below takes its own from, and our workers would wait for one of them to end. The daemon has
 * the right to memory that it then needs, see daemon/swap.c.
 */
static bool program_may_see(const struct bio *bio)
{
	return (bio_op(bio) == REQ_OP_READ || bio_op(bio) == REQ_OP_WRITE) &&
	       !(bio->bi_opf & (REQ_PREFLUSH | REQ_FUA | REQ_ATOMIC | REQ_SWAP)) && bio->bi_iter.bi_size;
}

/* Whether the recorded file I/O can be done on the front of the bio; sets call.file and segments. */
static bool possible(struct ublk_bpf_aio *aio)
{
	struct ublk_bpf_call *call = &aio->call;
	struct ublk_bpf_slot *slot = smp_load_acquire(&aio->disk->slots[call->slot]);
	const struct bio *bio = aio->bio;
	const struct bio_vec *bv = __bvec_iter_bvec(bio->bi_io_vec, bio->bi_iter);
	u32 memory = mp_bvec_iter_offset(bio->bi_io_vec, bio->bi_iter);
	u32 left = memory - bv->bv_offset + call->len;
	u64 size;

	if (!slot || (call->io.op == UBLK_BPF_WRITE && !slot->writable))
		return false;
	size = i_size_read(slot->inode);
	if (call->file_offset > size || call->len > size - call->file_offset ||
	    (call->file_offset | call->len) & slot->offset_mask)
		return false;
	/* where each piece of memory begins and ends */
	for (aio->segments = 1; left > bv->bv_len; aio->segments++) {
		left -= bv->bv_len;
		memory |= bv->bv_offset + bv->bv_len;
		bv++;
		memory |= bv->bv_offset;
	}
	call->file = slot;
	return !((memory | call->len) & slot->mem_mask);
}

/* Makes of verdict and recorded action something that can be done, or GO_BELOW. */
static void settle(struct ublk_bpf_disk *disk, struct ublk_bpf_aio *aio, int verdict)
{
	struct ublk_bpf_call *call = &aio->call;
	bool whole = call->len == call->io.len;
	bool sound = call->action != UBLK_BPF_NO_ACTION &&
		     (whole ? verdict == UBLK_BPF_QUEUED || verdict == UBLK_BPF_CONTINUE
			    : verdict == UBLK_BPF_CONTINUE && !(call->len & disk->block_mask));

	if (!sound) {
		if (verdict != UBLK_BPF_REDIRECT)
			ublk_bpf_count(disk, refused);
		call->action = UBLK_BPF_GO_BELOW;
		call->len = call->io.len;
	} else if (call->action == UBLK_BPF_FILE_IO && !possible(aio)) {
		ublk_bpf_count(disk, refused);
		call->action = UBLK_BPF_GO_BELOW;
	}
}

/* Asks the program; the range's counter is then held, but for GO_BELOW. */
static void ask(struct ublk_bpf_disk *disk, struct ublk_bpf_aio *aio)
{
	struct ublk_bpf_call *call = &aio->call;
	struct bio *bio = aio->bio;
	u64 offset = (u64)bio->bi_iter.bi_sector << SECTOR_SHIFT;
	int verdict = UBLK_BPF_REDIRECT;
	struct ublk_bpf_ops *ops;

	call->io.offset = offset;
	call->io.len = min_t(u64, bio->bi_iter.bi_size, (~offset & disk->range_mask) + 1);
	call->io.op = bio_op(bio) == REQ_OP_WRITE ? UBLK_BPF_WRITE : UBLK_BPF_READ;
	call->io.dev_id = disk->id;
	call->len = 0;
	call->action = UBLK_BPF_NO_ACTION;
	call->slot = 0;
	call->file_offset = 0;
	aio->count = ublk_bpf_enter(disk, offset);
	ops = READ_ONCE(disk->ops);
	if (likely(ops))
		verdict = ops->queue_io(&call->io);
	settle(disk, aio, verdict);
	trace_ublk_bpf_queue(call);
	if (call->action == UBLK_BPF_GO_BELOW)
		ublk_bpf_leave(disk, aio->count);
	else if (unlikely(READ_ONCE(test_delay_us)))
		fsleep(READ_ONCE(test_delay_us));
}

/* Ends what needs no file. */
static void finish(struct ublk_bpf_disk *disk, struct ublk_bpf_aio *aio)
{
	const struct ublk_bpf_call *call = &aio->call;
	struct bio *bio = aio->bio;

	if (!call->result && call->io.op == UBLK_BPF_READ)
		zero_fill_bio(bio);
	ublk_bpf_leave(disk, aio->count);
	ublk_bpf_count(disk, zeroed);
	ublk_bpf_count(disk, hits[call->io.op]);
	this_cpu_add(disk->counts->bytes[call->io.op], call->len);
	bio->bi_status = errno_to_blk_status(call->result);
	ublk_bpf_acct_end(bio, aio->start);
	ublk_bpf_aio_free(disk, aio);
	bio_endio(bio);
}

/*
 * The first @len bytes of @bio as a bio of their own; @bio, what is left, ends only after it. NULL: no
 * memory. Not waited for: that may be held by requests below, and the daemon may answer these only when the
 * range's counter, which we hold, has fallen.
 */
static struct bio *split_front(struct ublk_bpf_disk *disk, struct bio *bio, u32 len)
{
	struct bio *front = NULL;

	if (!ublk_bpf_pretend_no_memory())
		front = bio_split(bio, len >> SECTOR_SHIFT, GFP_NOWAIT, &disk->split_bios);
	if (IS_ERR_OR_NULL(front)) /* ERR_PTR since 6.14 */
		return NULL;
	bio_chain(front, bio);
	ublk_bpf_count(disk, splits);
	return front;
}

static void serve(struct ublk_bpf_disk *disk, struct bio *bio)
{
	struct ublk_bpf_aio *aio = ublk_bpf_aio_get(disk, bio);
	struct bio *rest = NULL;

	if (unlikely(!aio)) {
		ublk_bpf_count(disk, refused);
		ublk_bpf_redirect(disk, bio, bio_start_io_acct(bio));
		return;
	}
	ask(disk, aio);
	if (aio->call.len < bio->bi_iter.bi_size) {
		struct bio *front = split_front(disk, bio, aio->call.len);

		if (front) {
			rest = bio;
			bio = aio->bio = front;
		} else if (aio->call.action != UBLK_BPF_GO_BELOW) { /* whole */
			ublk_bpf_leave(disk, aio->count);
			ublk_bpf_count(disk, refused);
			aio->call.action = UBLK_BPF_GO_BELOW;
		}
	}
	aio->start = ublk_bpf_acct_start(bio);
	if (aio->call.action == UBLK_BPF_FILE_IO) {
		ublk_bpf_aio_start(aio);
	} else if (aio->call.action == UBLK_BPF_RESULT) {
		finish(disk, aio);
	} else {
		unsigned long start = aio->start;

		ublk_bpf_aio_free(disk, aio);
		ublk_bpf_redirect(disk, bio, start);
	}
	/* Not earlier: on the list it would keep the front from being issued inline. */
	if (rest)
		submit_bio_noacct(rest);
}

static void ublk_bpf_submit_bio(struct bio *bio)
{
	struct ublk_bpf_disk *disk = bio->bi_bdev->bd_disk->private_data;

	if (unlikely(READ_ONCE(disk->lower_dead)))
		bio_io_error(bio);
	else if (READ_ONCE(disk->ops) && program_may_see(bio))
		serve(disk, bio);
	else
		ublk_bpf_redirect(disk, bio, bio_start_io_acct(bio));
}

static int ublk_bpf_open(struct gendisk *gendisk, blk_mode_t mode)
{
	struct ublk_bpf_disk *disk = gendisk->private_data;

	return READ_ONCE(disk->state) == UBLK_BPF_GONE ? -ENXIO : 0;
}

static const struct block_device_operations disk_fops = {
	.owner = THIS_MODULE,
	.open = ublk_bpf_open,
	.submit_bio = ublk_bpf_submit_bio,
};

bool ublk_bpf_is_ours(const struct gendisk *gendisk)
{
	return gendisk->fops == &disk_fops;
}

/* The lower device is going. Also the hits have to end: nobody keeps their metadata any more. */
static void lower_mark_dead(struct block_device *bdev, bool surprise) __releases(&bdev->bd_holder_lock)
{
	struct ublk_bpf_disk *disk = bdev->bd_holder;

	WRITE_ONCE(disk->lower_dead, true);
	mutex_unlock(&bdev->bd_holder_lock);
}

static void lower_sync(struct block_device *bdev) __releases(&bdev->bd_holder_lock)
{
	mutex_unlock(&bdev->bd_holder_lock);
	sync_blockdev(bdev);
}

static const struct blk_holder_ops holder_ops = {
	.mark_dead = lower_mark_dead,
	.sync = lower_sync,
};

/* -- life -- */

struct ublk_bpf_disk *ublk_bpf_disk_get(u32 id)
{
	struct ublk_bpf_disk *disk;

	xa_lock(&disks);
	disk = xa_load(&disks, id);
	if (disk)
		refcount_inc(&disk->refs);
	xa_unlock(&disks);
	return disk;
}

void ublk_bpf_disk_put(struct ublk_bpf_disk *disk)
{
	if (!refcount_dec_and_test(&disk->refs))
		return;
	bioset_exit(&disk->clone_bios);
	bioset_exit(&disk->split_bios);
	mempool_exit(&disk->aios);
	free_percpu(disk->counts);
	kvfree(disk->buckets);
	kfree(disk);
}

/* Memory only; each of the exits in ublk_bpf_disk_put() takes what was never initialised. */
static struct ublk_bpf_disk *alloc_disk(void)
{
	struct ublk_bpf_disk *disk = kzalloc(sizeof(*disk), GFP_KERNEL);

	if (!disk)
		return NULL;
	refcount_set(&disk->refs, 1);
	mutex_init(&disk->lock);
	mutex_init(&disk->drain_lock);
	init_waitqueue_head(&disk->drain_wait);
	INIT_WORK(&disk->issue.work, ublk_bpf_issue_work);
	INIT_WORK(&disk->retry.work, ublk_bpf_retry_work);
	disk->buckets = kvcalloc(UBLK_BPF_BUCKETS, sizeof(*disk->buckets), GFP_KERNEL);
	disk->counts = alloc_percpu(struct ublk_bpf_counts);
	if (!disk->buckets || !disk->counts || ublk_bpf_aio_init(disk) ||
	    bioset_init(&disk->split_bios, RESERVE, 0, 0) ||
	    bioset_init(&disk->clone_bios, RESERVE, offsetof(struct redirected, clone), 0)) {
		ublk_bpf_disk_put(disk);
		return NULL;
	}
	return disk;
}

static int open_lower(struct ublk_bpf_disk *disk, int fd)
{
	struct file *file = fget(fd);
	blk_mode_t mode = BLK_OPEN_READ | BLK_OPEN_RESTRICT_WRITES;
	struct block_device *bdev;
	int ret = 0;

	if (!file)
		return -EBADF;
	if (!S_ISBLK(file_inode(file)->i_mode)) {
		ret = -ENOTBLK;
		goto put;
	}
	bdev = I_BDEV(file->f_mapping->host);
	if (ublk_bpf_is_ours(bdev->bd_disk)) {
		ret = -EBUSY;
		goto put;
	}
	if (bdev_read_only(bdev))
		disk->flags |= UBLK_BPF_DISK_RDONLY;
	if (!(disk->flags & UBLK_BPF_DISK_RDONLY))
		mode |= BLK_OPEN_WRITE;
	disk->lower_file = bdev_file_open_by_dev(bdev->bd_dev, mode, disk, &holder_ops);
	if (IS_ERR(disk->lower_file))
		ret = PTR_ERR(disk->lower_file);
	else
		disk->lower = file_bdev(disk->lower_file);
put:
	fput(file);
	return ret;
}

static int make_gendisk(struct ublk_bpf_disk *disk)
{
	struct queue_limits lim;
	struct gendisk *gendisk;

	blk_set_stacking_limits(&lim);
	lim.features |= BLK_FEAT_NOWAIT | BLK_FEAT_IO_STAT;
	queue_limits_stack_bdev(&lim, disk->lower, 0, "ublk_bpf");
	/* Nothing to poll; ranges are our business, and the lower device's own boundary its. */
	lim.features &= ~BLK_FEAT_POLL;
	lim.chunk_sectors = 0;
	gendisk = blk_alloc_disk(&lim, NUMA_NO_NODE);
	if (IS_ERR(gendisk))
		return PTR_ERR(gendisk);
	gendisk->fops = &disk_fops;
	gendisk->private_data = disk;
	snprintf(gendisk->disk_name, sizeof(gendisk->disk_name), "ublkbpf%u", disk->id);
	set_capacity(gendisk, bdev_nr_sectors(disk->lower));
	set_disk_ro(gendisk, disk->flags & UBLK_BPF_DISK_RDONLY);
	disk->block_mask = bdev_logical_block_size(disk->lower) - 1;
	disk->gendisk = gendisk;
	return 0;
}

static int take_id(struct ublk_bpf_disk *disk, u32 wanted)
{
	int ret;

	if (wanted == UBLK_BPF_ANY_ID)
		return xa_alloc(&disks, &disk->id, NULL, XA_LIMIT(0, MAX_ID), GFP_KERNEL);
	if (wanted > MAX_ID)
		return -EINVAL;
	disk->id = wanted;
	ret = xa_insert(&disks, wanted, NULL, GFP_KERNEL);
	return ret == -EBUSY ? -EEXIST : ret;
}

/* From here on ioctls and programs find it. */
static int announce(struct ublk_bpf_disk *disk)
{
	int ret;

	xa_store(&disks, disk->id, disk, GFP_KERNEL); /* into a reserved entry: cannot fail */
	ret = device_add_disk(NULL, disk->gendisk, NULL);
	if (ret)
		return ret;
	ret = bd_link_disk_holder(disk->lower, disk->gendisk);
	if (ret)
		del_gendisk(disk->gendisk);
	return ret;
}

/* After this the disk does nothing any more; its memory may live on in somebody's hand. */
static void quiesce(struct ublk_bpf_disk *disk)
{
	ublk_bpf_detach(disk);
	synchronize_rcu(); /* punt() */
	ublk_bpf_slots_clear(disk);
}

int ublk_bpf_disk_create(struct ublk_bpf_create *arg)
{
	struct ublk_bpf_disk *disk;
	int ret;

	if (arg->flags & ~UBLK_BPF_DISK_RDONLY)
		return -EINVAL;
	if (arg->range_shift < UBLK_BPF_RANGE_MIN || arg->range_shift > UBLK_BPF_RANGE_MAX)
		return -ERANGE;
	disk = alloc_disk();
	if (!disk)
		return -ENOMEM;
	disk->flags = arg->flags;
	disk->range_shift = arg->range_shift;
	disk->range_mask = (1ULL << arg->range_shift) - 1;
	ret = open_lower(disk, arg->lower_fd);
	if (ret)
		goto put;
	ret = take_id(disk, arg->id);
	if (ret)
		goto close;
	disk->wq = alloc_workqueue("ublkbpf%u", WQ_MEM_RECLAIM | WQ_UNBOUND | WQ_HIGHPRI, 0, disk->id);
	ret = disk->wq ? make_gendisk(disk) : -ENOMEM;
	if (ret)
		goto release;
	__module_get(THIS_MODULE);
	ret = announce(disk);
	if (ret)
		goto withdraw;
	arg->id = disk->id;
	arg->major = disk_devt(disk->gendisk) >> MINORBITS;
	arg->minor = disk_devt(disk->gendisk) & MINORMASK;
	mutex_lock(&disk->lock);
	disk->state = UBLK_BPF_LIVE;
	mutex_unlock(&disk->lock);
	return 0;

withdraw:
	mutex_lock(&disk->lock);
	disk->state = UBLK_BPF_GONE;
	mutex_unlock(&disk->lock);
	quiesce(disk);
	put_disk(disk->gendisk);
	module_put(THIS_MODULE);
release:
	if (disk->wq)
		destroy_workqueue(disk->wq);
	xa_erase(&disks, disk->id);
close:
	bdev_fput(disk->lower_file);
put:
	ublk_bpf_disk_put(disk);
	return ret;
}

/* Nobody has it open, and nobody will. Who holds open_mutex may wait for the daemon: it counts as open. */
static int close_doors(struct ublk_bpf_disk *disk)
{
	int ret = 0;

	mutex_lock(&disk->lock);
	if (disk->state == UBLK_BPF_GONE) {
		ret = -ENODEV;
	} else if (disk->state == UBLK_BPF_STARTING) {
		ret = -EBUSY;
	} else if (!mutex_trylock(&disk->gendisk->open_mutex)) {
		ret = -EBUSY;
	} else {
		if (disk_openers(disk->gendisk))
			ret = -EBUSY;
		else
			WRITE_ONCE(disk->state, UBLK_BPF_GONE);
		mutex_unlock(&disk->gendisk->open_mutex);
	}
	mutex_unlock(&disk->lock);
	return ret;
}

int ublk_bpf_disk_destroy(struct ublk_bpf_disk *disk)
{
	int ret = close_doors(disk);

	if (ret)
		return ret;
	bd_unlink_disk_holder(disk->lower, disk->gendisk);
	del_gendisk(disk->gendisk);
	quiesce(disk);
	put_disk(disk->gendisk);
	destroy_workqueue(disk->wq);
	xa_erase(&disks, disk->id);
	bdev_fput(disk->lower_file);
	module_put(THIS_MODULE);
	ublk_bpf_disk_put(disk); /* the index's; the caller has its own */
	return 0;
}
