// SPDX-License-Identifier: GPL-2.0
/*
 * The files of a disk. A hit reads its slot under its range counter, so a slot that was taken out of the disk
 * is free once all counters have drained. The slot holds the open file description, and so its locks.
 */
#include <linux/file.h>
#include <linux/stat.h>

#include "core.h"

#define LOOP_DEPTH 8 /* of ublkbpf disks upon files upon ublkbpf disks */

static void free_slot(struct ublk_bpf_slot *slot)
{
	if (!slot)
		return;
	fput(slot->file);
	kfree(slot);
}

/* The disk that the file's data are on, as far as one step shows; NULL if on none. */
static struct gendisk *disk_of(struct file *file)
{
	struct inode *inode = file->f_mapping->host;

	if (S_ISBLK(file_inode(file)->i_mode))
		return I_BDEV(inode)->bd_disk;
	return inode->i_sb->s_bdev ? inode->i_sb->s_bdev->bd_disk : NULL;
}

/* Would @file on @disk make I/O run in a circle? Only ublkbpf disks are looked through. */
static bool makes_loop(struct ublk_bpf_disk *disk, struct file *file, int depth)
{
	struct gendisk *below = disk_of(file);
	struct ublk_bpf_disk *other;
	bool loop = false;
	int i;

	if (!below)
		return false;
	if (below == disk->gendisk || below == disk->lower->bd_disk)
		return true;
	if (!ublk_bpf_is_ours(below))
		return false;
	if (depth == LOOP_DEPTH)
		return true;
	other = below->private_data;
	for (i = 0; i < UBLK_BPF_FILES && !loop; i++)
		loop = other->slots[i] && makes_loop(disk, other->slots[i]->file, depth + 1);
	return loop;
}

/* Direct I/O's alignment as the file tells it; else the block size of what it is on. */
static int alignment(struct ublk_bpf_slot *slot)
{
	struct file *file = slot->file;
	struct kstat stat;
	int ret;

	if (S_ISBLK(file_inode(file)->i_mode)) {
		struct block_device *bdev = I_BDEV(slot->inode);

		slot->offset_mask = bdev_logical_block_size(bdev) - 1;
		slot->mem_mask = bdev_dma_alignment(bdev);
		return 0;
	}
	ret = vfs_getattr(&file->f_path, &stat, STATX_DIOALIGN, AT_STATX_SYNC_AS_STAT);
	if (ret)
		return ret;
	if (stat.result_mask & STATX_DIOALIGN) {
		if (!stat.dio_offset_align)
			return -EOPNOTSUPP;
		slot->offset_mask = max_t(u32, stat.dio_offset_align, SECTOR_SIZE) - 1;
		slot->mem_mask = stat.dio_mem_align - 1;
	} else {
		slot->offset_mask = max_t(u32, i_blocksize(slot->inode), SECTOR_SIZE) - 1;
		slot->mem_mask = slot->offset_mask;
	}
	return 0;
}

static int check_file(struct ublk_bpf_disk *disk, struct file *file, bool rdonly)
{
	umode_t mode = file_inode(file)->i_mode;

	if (!(file->f_mode & FMODE_READ) || (!rdonly && !(file->f_mode & FMODE_WRITE)))
		return -EBADF;
	if ((!S_ISREG(mode) && !S_ISBLK(mode)) || !(file->f_flags & O_DIRECT))
		return -EINVAL;
	if (!file->f_op->read_iter || (!rdonly && !file->f_op->write_iter))
		return -EOPNOTSUPP;
	if (!rdonly && get_disk_ro(disk->gendisk))
		return -EROFS;
	return 0;
}

/* Takes the reference on @file over if it succeeds. */
static struct ublk_bpf_slot *make_slot(struct ublk_bpf_disk *disk, struct file *file, bool rdonly)
{
	struct ublk_bpf_slot *slot;
	int ret = check_file(disk, file, rdonly);

	if (ret)
		return ERR_PTR(ret);
	slot = kzalloc(sizeof(*slot), GFP_KERNEL);
	if (!slot)
		return ERR_PTR(-ENOMEM);
	slot->file = file;
	slot->inode = file->f_mapping->host;
	slot->writable = !rdonly;
	slot->nowait = file->f_mode & FMODE_NOWAIT;
	slot->freezable = S_ISREG(file_inode(file)->i_mode);
	ret = alignment(slot);
	if (ret) {
		kfree(slot);
		return ERR_PTR(ret);
	}
	/* Else a read may have to start a transaction of the file system, for the access time. */
	spin_lock(&file->f_lock);
	file->f_flags |= O_NOATIME;
	spin_unlock(&file->f_lock);
	return slot;
}

/*
 * Keeps two disks from putting files on each other at the same time, unseen by makes_loop(), which looks at the
 * slots of every disk on its way. Inside a disk's own lock, and never held for long: a drain may wait for a file
 * system that is frozen, and other disks have nothing to do with it.
 */
static DEFINE_MUTEX(slots_lock);

/* 0, or -ELOOP: nothing has changed. */
static int replace(struct ublk_bpf_disk *disk, u32 n, struct ublk_bpf_slot *slot)
{
	struct ublk_bpf_slot *old;

	lockdep_assert_held(&disk->lock);
	mutex_lock(&slots_lock);
	if (slot && makes_loop(disk, slot->file, 0)) {
		mutex_unlock(&slots_lock);
		return -ELOOP;
	}
	old = disk->slots[n];
	smp_store_release(&disk->slots[n], slot);
	mutex_unlock(&slots_lock);
	if (old) {
		ublk_bpf_drain_range(disk, 0, U64_MAX, false);
		free_slot(old);
	}
	return 0;
}

int ublk_bpf_slot_set(struct ublk_bpf_disk *disk, struct ublk_bpf_file *arg)
{
	struct ublk_bpf_slot *slot = NULL;
	struct file *file = NULL;
	int ret;

	if (arg->flags & ~UBLK_BPF_FILE_RDONLY)
		return -EINVAL;
	if (arg->slot >= UBLK_BPF_FILES)
		return -ERANGE;
	if (arg->fd >= 0) {
		file = fget(arg->fd);
		if (!file)
			return -EBADF;
	} else if (arg->fd != -1) {
		return -EBADF;
	}
	mutex_lock(&disk->lock);
	ret = disk->state == UBLK_BPF_GONE ? -ENODEV : 0;
	if (!ret && file) {
		slot = make_slot(disk, file, arg->flags & UBLK_BPF_FILE_RDONLY);
		ret = PTR_ERR_OR_ZERO(slot);
		if (!ret)
			file = NULL;
	}
	if (!ret) {
		ret = replace(disk, arg->slot, slot);
		if (ret)
			free_slot(slot);
	}
	if (!ret) {
		arg->mem_align = slot ? slot->mem_mask + 1 : 0;
		arg->offset_align = slot ? slot->offset_mask + 1 : 0;
	}
	mutex_unlock(&disk->lock);
	if (file)
		fput(file);
	return ret;
}

void ublk_bpf_slots_clear(struct ublk_bpf_disk *disk)
{
	int i;

	mutex_lock(&disk->lock);
	mutex_lock(&slots_lock);
	for (i = 0; i < UBLK_BPF_FILES; i++) {
		free_slot(disk->slots[i]);
		disk->slots[i] = NULL;
	}
	mutex_unlock(&slots_lock);
	mutex_unlock(&disk->lock);
}

int ublk_bpf_slot_get(struct ublk_bpf_disk *disk, struct ublk_bpf_file *arg)
{
	struct ublk_bpf_slot *slot;
	int ret = -ENOENT;

	if (arg->slot >= UBLK_BPF_FILES)
		return -ERANGE;
	mutex_lock(&disk->lock);
	slot = disk->state == UBLK_BPF_GONE ? NULL : disk->slots[arg->slot];
	if (slot) {
		arg->flags = slot->writable ? 0 : UBLK_BPF_FILE_RDONLY;
		arg->mem_align = slot->mem_mask + 1;
		arg->offset_align = slot->offset_mask + 1;
		ret = receive_fd(slot->file, NULL, O_CLOEXEC);
		arg->fd = ret;
	}
	mutex_unlock(&disk->lock);
	return ret < 0 ? ret : 0;
}
