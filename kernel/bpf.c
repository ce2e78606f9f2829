// SPDX-License-Identifier: GPL-2.0
/*
 * The struct_ops ublk_bpf_ops, and the functions that its programs may call.
 *
 * A program belongs to one disk from reg to unreg, or until the disk is destroyed. disk->ops changes under
 * disk->lock and is called only with a range counter held, like any other word that a lookup depends on:
 * whoever takes a program away drains. A program answers by recording an action in the ublk_bpf_call around
 * its ublk_bpf_io; it has no other way to write to either.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#include <linux/bpf.h>
#include <linux/bpf_verifier.h>
#include <linux/btf.h>
#include <linux/btf_ids.h>
#include <linux/module.h>

#include "core.h"

static bool btf_seen;

/* -- functions for programs -- */

static int record(struct ublk_bpf_io *io, u32 len, enum ublk_bpf_action action, int result)
{
	struct ublk_bpf_call *call = container_of(io, struct ublk_bpf_call, io);

	if (!len || len > io->len || len & (SECTOR_SIZE - 1))
		return -EINVAL;
	call->len = len;
	call->action = action;
	call->result = result;
	return 0;
}

__bpf_kfunc_start_defs();

__bpf_kfunc int ublk_bpf_io_hit(struct ublk_bpf_io *io, u32 slot, u64 offset, u32 len)
{
	struct ublk_bpf_call *call = container_of(io, struct ublk_bpf_call, io);

	if (slot >= UBLK_BPF_FILES || offset & (SECTOR_SIZE - 1))
		return -EINVAL;
	if (record(io, len, UBLK_BPF_FILE_IO, 0))
		return -EINVAL;
	call->slot = slot;
	call->file_offset = offset;
	return 0;
}

__bpf_kfunc int ublk_bpf_io_zero(struct ublk_bpf_io *io, u32 len)
{
	return io->op == UBLK_BPF_READ ? record(io, len, UBLK_BPF_RESULT, 0) : -EINVAL;
}

__bpf_kfunc int ublk_bpf_io_complete(struct ublk_bpf_io *io, u32 len, int result)
{
	return result <= 0 && result >= -MAX_ERRNO ? record(io, len, UBLK_BPF_RESULT, result) : -EINVAL;
}

__bpf_kfunc int ublk_bpf_io_redirect(struct ublk_bpf_io *io, u32 len)
{
	return record(io, len, UBLK_BPF_GO_BELOW, 0);
}

__bpf_kfunc_end_defs();

#ifndef KF_TRUSTED_ARGS /* 7.x: always on */
#define KF_TRUSTED_ARGS 0
#endif

BTF_KFUNCS_START(kfunc_ids)
BTF_ID_FLAGS(func, ublk_bpf_io_hit, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, ublk_bpf_io_zero, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, ublk_bpf_io_complete, KF_TRUSTED_ARGS)
BTF_ID_FLAGS(func, ublk_bpf_io_redirect, KF_TRUSTED_ARGS)
BTF_KFUNCS_END(kfunc_ids)

static const struct btf_kfunc_id_set kfunc_set = {
	.owner = THIS_MODULE,
	.set = &kfunc_ids,
};

/* -- struct_ops -- */

/* Returns when no request is at the program that was there before, or at work on its word. */
static void set_ops(struct ublk_bpf_disk *disk, struct ublk_bpf_ops *ops)
{
	struct ublk_bpf_ops *old = disk->ops;

	lockdep_assert_held(&disk->lock);
	smp_store_release(&disk->ops, ops);
	if (old)
		ublk_bpf_drain_range(disk, 0, U64_MAX, false);
}

void ublk_bpf_detach(struct ublk_bpf_disk *disk)
{
	mutex_lock(&disk->lock);
	set_ops(disk, NULL);
	mutex_unlock(&disk->lock);
}

static int ops_reg(void *kdata, struct bpf_link *link)
{
	struct ublk_bpf_ops *ops = kdata;
	struct ublk_bpf_disk *disk = ublk_bpf_disk_get(ops->dev_id);
	int ret = 0;

	if (!disk)
		return -ENODEV;
	mutex_lock(&disk->lock);
	if (disk->state == UBLK_BPF_GONE)
		ret = -ENODEV;
	else if (disk->ops)
		ret = -EBUSY;
	else
		set_ops(disk, ops);
	mutex_unlock(&disk->lock);
	ublk_bpf_disk_put(disk);
	return ret;
}

static void ops_unreg(void *kdata, struct bpf_link *link)
{
	struct ublk_bpf_ops *ops = kdata;
	struct ublk_bpf_disk *disk = ublk_bpf_disk_get(ops->dev_id);

	if (!disk)
		return;
	mutex_lock(&disk->lock);
	if (disk->ops == ops) /* else its disk was destroyed, and this one only has the same number */
		set_ops(disk, NULL);
	mutex_unlock(&disk->lock);
	ublk_bpf_disk_put(disk);
}

static int ops_update(void *kdata, void *old_kdata, struct bpf_link *link)
{
	struct ublk_bpf_ops *ops = kdata, *old = old_kdata;
	struct ublk_bpf_disk *disk;
	int ret = 0;

	if (ops->dev_id != old->dev_id)
		return -EINVAL;
	disk = ublk_bpf_disk_get(ops->dev_id);
	if (!disk)
		return -ENODEV;
	mutex_lock(&disk->lock);
	if (disk->ops == old)
		set_ops(disk, ops);
	else
		ret = -ENODEV;
	mutex_unlock(&disk->lock);
	ublk_bpf_disk_put(disk);
	return ret;
}

static int ops_validate(void *kdata)
{
	struct ublk_bpf_ops *ops = kdata;

	return ops->queue_io ? 0 : -EINVAL;
}

static int ops_init(struct btf *btf)
{
	btf_seen = true;
	return 0;
}

static int ops_check_member(const struct btf_type *t, const struct btf_member *member,
			    const struct bpf_prog *prog)
{
	return prog->sleepable ? -EINVAL : 0;
}

static int ops_init_member(const struct btf_type *t, const struct btf_member *member, void *kdata,
			   const void *udata)
{
	const struct ublk_bpf_ops *from = udata;
	struct ublk_bpf_ops *to = kdata;

	if (__btf_member_bit_offset(t, member) != offsetof(struct ublk_bpf_ops, dev_id) * 8)
		return 0;
	to->dev_id = from->dev_id;
	return 1;
}

static bool ops_is_valid_access(int off, int size, enum bpf_access_type type, const struct bpf_prog *prog,
				struct bpf_insn_access_aux *info)
{
	return bpf_tracing_btf_ctx_access(off, size, type, prog, info);
}

static const struct bpf_verifier_ops verifier_ops = {
	.get_func_proto = bpf_base_func_proto,
	.is_valid_access = ops_is_valid_access,
};

/* The names are the kernel's convention. */
static int ublk_bpf_ops__queue_io(struct ublk_bpf_io *io)
{
	return UBLK_BPF_REDIRECT;
}

static void ublk_bpf_ops__complete_io(struct ublk_bpf_io *io, int result)
{
}

static struct ublk_bpf_ops cfi_stubs = {
	.queue_io = ublk_bpf_ops__queue_io,
	.complete_io = ublk_bpf_ops__complete_io,
};

static struct bpf_struct_ops struct_ops = {
	.verifier_ops = &verifier_ops,
	.init = ops_init,
	.check_member = ops_check_member,
	.init_member = ops_init_member,
	.reg = ops_reg,
	.unreg = ops_unreg,
	.update = ops_update,
	.validate = ops_validate,
	.cfi_stubs = &cfi_stubs,
	.name = "ublk_bpf_ops",
	.owner = THIS_MODULE,
};

/* Both registrations live in the module's BTF and end with it. Without BTF they succeed and do nothing. */
int ublk_bpf_struct_ops_init(void)
{
	int ret = register_btf_kfunc_id_set(BPF_PROG_TYPE_STRUCT_OPS, &kfunc_set);

	if (ret)
		return ret;
	ret = register_bpf_struct_ops(&struct_ops, ublk_bpf_ops);
	if (ret)
		return ret;
	if (!btf_seen) {
		pr_err("built without BTF: it needs pahole, and vmlinux in the kernel's build folder\n");
		return -ENOEXEC;
	}
	return 0;
}
