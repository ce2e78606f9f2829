/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * cache.c - one bounded cache for every metadata block of an image: header, L1, L2, refcount table,
 * refcount blocks, all in units of geometry.block_size.
 *
 * Invariants: a dirty, pinned or loading block is never evicted; a block is in the hash iff it is valid
 * or loading; a failed load leaves no block behind, and every waiter sees the error. Nothing here writes:
 * dirty blocks are taken by commit.c. After a crash the cache is gone and nothing depended on it.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cache.h"
#include "commit.h"
#include "journal.h"

#define CACHE_DEFAULT_BYTES (2u << 20)
#define CACHE_MIN_BLOCKS 64u
#define CACHE_CLEAN_BLOCKS 16u /* so few clean ones are not evicted */
#define CACHE_READER_BLOCKS 4u /* the same of an image that is only read: there may be 255 of them in a chain */
#define CACHE_GIVE_BLOCKS 8u
#define CACHE_SPARE_BLOCKS 64u /* beyond the size, for who cannot wait */

struct cache {
	struct qcow2_image *img;
	unsigned max, count, dirty, hash_mask;
	struct block **hash;
	TAILQ_HEAD(lru, block) lru; /* first = most recently used */
	struct lru dirty_list;
	struct waitq room; /* ops that found every block in use */
};

int cache_new(struct qcow2_image *img, uint64_t bytes)
{
	struct cache *c = calloc(1, sizeof(*c));
	unsigned buckets = 64;

	if (!c)
		return -ENOMEM;
	c->img = img;
	if (!bytes)
		bytes = CACHE_DEFAULT_BYTES;
	bytes >>= img->geo.block_bits;
	c->max = bytes > (1u << 24) ? 1u << 24 : (unsigned)bytes;
	if (c->max < CACHE_MIN_BLOCKS)
		c->max = CACHE_MIN_BLOCKS;
	while (buckets < c->max)
		buckets *= 2;
	c->hash_mask = buckets - 1;
	c->hash = calloc(buckets, sizeof(*c->hash));
	if (!c->hash) {
		free(c);
		return -ENOMEM;
	}
	TAILQ_INIT(&c->lru);
	TAILQ_INIT(&c->dirty_list);
	waitq_init(&c->room);
	img->cache = c;
	return 0;
}

static struct block **hash_slot(struct cache *c, uint64_t off)
{
	uint64_t h = (off >> c->img->geo.block_bits) * 0x9e3779b97f4a7c15ull;

	return &c->hash[(h >> 32) & c->hash_mask];
}

static struct block *hash_find(struct cache *c, uint64_t off)
{
	struct block *b;

	for (b = *hash_slot(c, off); b && b->off != off; b = b->hash_next)
		;
	return b;
}

static void hash_remove(struct cache *c, struct block *b)
{
	struct block **p;

	for (p = hash_slot(c, b->off); *p != b; p = &(*p)->hash_next)
		;
	*p = b->hash_next;
}

static void block_free(struct cache *c, struct block *b)
{
	hash_remove(c, b);
	TAILQ_REMOVE(&c->lru, b, lru);
	if (b->dirty) {
		TAILQ_REMOVE(&c->dirty_list, b, dirty_link);
		c->dirty--;
	}
	c->count--;
	buf_free(b->data);
	mem_put(b);
}

void cache_free(struct qcow2_image *img)
{
	struct cache *c = img->cache;
	struct block *b;

	if (!c)
		return;
	while ((b = TAILQ_FIRST(&c->lru)))
		block_free(c, b);
	free(c->hash);
	free(c);
	img->cache = NULL;
}

/*
 * Free a block; false: so many are in use, dirty or being written, that the few others would only push each other
 * out: looking up one refcount takes two blocks at a time.
 */
static bool evict(struct cache *c)
{
	unsigned clean = 0, keep = c->img->commit ? CACHE_CLEAN_BLOCKS : CACHE_READER_BLOCKS;
	struct block *b, *oldest = NULL;

	TAILQ_FOREACH_REVERSE(b, &c->lru, lru, lru) {
		if (b->dirty || b->pins || b->loading)
			continue;
		if (!oldest)
			oldest = b;
		if (++clean > keep) {
			block_free(c, oldest);
			return true;
		}
	}
	return false;
}

static void load_done(struct host_io *io, int res)
{
	struct block *b = io->owner;
	struct cache *c = b->cache;

	b->loading = false;
	b->valid = !res;
	if (!res && c->img->overlay)
		overlay_patch(c->img->overlay, b->data, b->off, c->img->geo.block_size);
	waitq_wake(&b->waiters, res); /* they run later, and look again */
	if (res || b->doomed)
		block_free(c, b);
	waitq_wake(&c->room, 0);
}

/* Of memory there is for blocks it has what others need more. */
void *cache_buffer(struct qcow2_image *img)
{
	void *buf;

	while (!(buf = buf_alloc(img->geo.block_size)) && evict(img->cache))
		;
	return buf;
}

void cache_give(struct qcow2_image *img)
{
	unsigned n = CACHE_GIVE_BLOCKS;

	while (n-- && evict(img->cache))
		;
}

static struct block *block_new(struct cache *c, enum block_type type, uint64_t off)
{
	struct block *b = mem_get_zeroed(sizeof(*b)), **slot;

	if (!b)
		return NULL;
	b->data = cache_buffer(c->img);
	if (!b->data) {
		mem_put(b);
		return NULL;
	}
	slot = hash_slot(c, off);
	b->off = off;
	b->type = type;
	b->cache = c;
	waitq_init(&b->waiters);
	b->hash_next = *slot;
	*slot = b;
	TAILQ_INSERT_HEAD(&c->lru, b, lru);
	c->count++;
	return b;
}

static int load(struct qcow2_image *img, enum block_type type, uint64_t off, struct op *waiter)
{
	struct cache *c = img->cache;
	struct block *b;
	/* A commit must get on even if everything is dirty: it is what makes room. So must readers of an image that
	 * no commit will clean any more. */
	bool must = commit_owns(img, waiter) || (img->mode != MODE_RW && c->dirty);

	if (c->count >= c->max + (must ? CACHE_SPARE_BLOCKS : 0) && !evict(c) && !must) {
		op_wait(&c->room, waiter);
		commit_start(img);
		return -EWOULDBLOCK;
	}
	b = block_new(c, type, off);
	if (!b) {
		commit_start(img); /* it cleans some */
		return -ENOMEM;
	}
	img->stats.cache_misses++;
	b->loading = true;
	op_wait(&b->waiters, waiter);
	b->io = (struct host_io){ .op = HOST_READ, .file = img->file, .off = off, .len = img->geo.block_size,
				  .buf = b->data, .done = load_done, .owner = b };
	img->file->ops->submit(&b->io);
	return -EWOULDBLOCK;
}

int cache_get(struct qcow2_image *img, enum block_type type, uint64_t off, struct block **out, struct op *waiter)
{
	struct cache *c = img->cache;
	struct block *b = hash_find(c, off);

	assert(!(off & (img->geo.block_size - 1)));
	if (!b)
		return waiter ? load(img, type, off, waiter) : -EWOULDBLOCK;
	if (b->type != type)
		return -EUCLEAN;
	if (b->loading) {
		if (waiter)
			op_wait(&b->waiters, waiter);
		return -EWOULDBLOCK;
	}
	img->stats.cache_hits++;
	if (b != TAILQ_FIRST(&c->lru)) {
		TAILQ_REMOVE(&c->lru, b, lru);
		TAILQ_INSERT_HEAD(&c->lru, b, lru);
	}
	*out = b;
	return 0;
}

int cache_get_word(struct qcow2_image *img, enum block_type type, uint64_t table, uint64_t index, struct block **out,
		   uint32_t *in, struct op *waiter)
{
	unsigned bits = img->geo.block_bits - 3;

	*in = (uint32_t)(index & ((1u << bits) - 1));
	return cache_get(img, type, table + ((index >> bits) << img->geo.block_bits), out, waiter);
}

struct block *cache_insert(struct qcow2_image *img, enum block_type type, uint64_t off, const void *data)
{
	struct block *b = block_new(img->cache, type, off);

	if (!b)
		return NULL;
	memcpy(b->data, data, img->geo.block_size);
	b->valid = true;
	return b;
}

void block_pin(struct block *b)
{
	b->pins++;
}

void block_unpin(struct block *b)
{
	assert(b->pins);
	if (!--b->pins && b->doomed)
		block_free(b->cache, b);
}

void block_dirty(struct qcow2_image *img, struct block *b)
{
	struct cache *c = img->cache;

	assert(b->valid);
	if (b->dirty || b->doomed)
		return;
	b->dirty = true;
	c->dirty++;
	TAILQ_INSERT_TAIL(&c->dirty_list, b, dirty_link);
	if (c->dirty > cache_dirty_limit(img))
		commit_start(img);
}

void block_store64(struct qcow2_image *img, struct block *b, uint32_t at, uint64_t raw)
{
	uint64_t *word = (uint64_t *)((char *)b->data + at);

	if (*word != raw) {
		journal_word(img, b->type, b->off + at, *word, raw);
		*word = raw;
	}
	block_dirty(img, b);
}

void cache_drop(struct qcow2_image *img, uint64_t off, uint64_t len)
{
	struct cache *c = img->cache;
	struct block *b;
	uint64_t end = off + len;

	for (; off < end; off += img->geo.block_size) {
		b = hash_find(c, off);
		if (!b)
			continue;
		if (b->pins || b->loading) /* it dies when the commit that holds it, or the load, ends */
			b->doomed = true;
		else
			block_free(c, b);
	}
}

void cache_take_dirty(struct qcow2_image *img, void (*fn)(void *ctx, struct block *b), void *ctx)
{
	struct cache *c = img->cache;
	struct block *b;

	while ((b = TAILQ_FIRST(&c->dirty_list))) {
		TAILQ_REMOVE(&c->dirty_list, b, dirty_link);
		b->dirty = false;
		c->dirty--;
		if (!b->doomed)
			fn(ctx, b);
	}
}

unsigned cache_dirty_count(const struct qcow2_image *img)
{
	return img->cache->dirty;
}

unsigned cache_dirty_limit(const struct qcow2_image *img)
{
	const struct cache *c = img->cache;
	size_t size = (size_t)buf_takes(img->geo.block_size);
	size_t blocks = mem_ready(16 * size * (c->dirty + 1)) / size; /* a commit needs a copy of each dirty one */

	return blocks / 8 < c->max / 4 ? (unsigned)(blocks / 8) : c->max / 4;
}

void cache_wake(struct qcow2_image *img, int err)
{
	waitq_wake(&img->cache->room, err);
}
