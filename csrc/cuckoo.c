/* Cuckoo ORAM: a hierarchy of cuckoo hash tables, rebuilt a little with each access. oram/kernels/reference/cuckoooram.py is the
 * specification, oram/params/cuckoo.py the schedule, docs/schemes/cuckoo.md the reasons. */
#include <openssl/evp.h>

#include "batch.h"
#include "bytes.h"
#include "coins.h"
#include "hierarchy.h"
#include "oram.h"
#include "walk.h"

#define ABSENT 0u
#define OLD 1u
#define CYCLE 65534u /* flushes after which a code would mean another one */
#define FEW 64u      /* hash functions at a time */
#define BLOCK 2048u  /* index entries at a time, a multiple of 512 */
#define AHEAD 2u     /* slots of a region fetched before they are opened */

enum { SOURCE = 15, CLIENT = 15, FIRST = 16, SECOND = 32, OPEN = 64 }; /* what the bits of an entry's kind mean */

/* --- hash functions */

void oram_prf_free(oram_prf *prf) {
    if (prf == NULL) return;
    EVP_CIPHER_CTX_free(prf->aes);
    OPENSSL_free(prf);
}

oram_prf *oram_prf_new(const uint8_t *key) {
    oram_prf *prf = OPENSSL_zalloc(sizeof *prf);
    if (prf == NULL) return NULL;
    prf->aes = EVP_CIPHER_CTX_new();
    if (prf->aes == NULL || EVP_EncryptInit_ex(prf->aes, EVP_aes_256_ecb(), NULL, key, NULL) != 1 || EVP_CIPHER_CTX_set_padding(prf->aes, 0) != 1) {
        oram_prf_free(prf);
        return NULL;
    }
    return prf;
}

/* Cells of at most FEW addresses in a table: 2h in the first, 2h + 1 in the second. */
static int cells(const oram_cuckoo *p, table t, uint32_t n, const uint32_t *addr, uint32_t *u, uint32_t *v) {
    const uint32_t m = p->levels[t.level].m;
    uint8_t text[16 * FEW];
    int len = 0;
    for (uint32_t i = 0; i < n; i++) {
        st32(text + 16 * i, addr[i]);
        st32(text + 16 * i + 4, t.level);
        st64(text + 16 * i + 8, t.epoch);
    }
    if (EVP_EncryptUpdate(p->prf->aes, text, &len, text, (int)(16 * n)) != 1 || len != (int)(16 * n)) return ORAM_CIPHER_FAILED;
    for (uint32_t i = 0; i < n; i++) {
        u[i] = 2 * scaled(ld64(text + 16 * i), m);
        v[i] = 2 * scaled(ld64(text + 16 * i + 8), m) + 1;
    }
    return ORAM_OK;
}

int oram_cuckoo_pairs(const oram_cuckoo *p, uint32_t level, uint64_t epoch, uint32_t n, const uint32_t *addr, int64_t *pairs) {
    uint32_t u[FEW], v[FEW];
    for (uint32_t at = 0; at < n; at += FEW) {
        const uint32_t few = n - at < FEW ? n - at : FEW;
        const int rc = cells(p, (table){level, epoch}, few, addr + at, u, v);
        if (rc != ORAM_OK) return rc;
        for (uint32_t i = 0; i < few; i++) {
            pairs[2 * (size_t)(at + i)] = u[i] / 2;
            pairs[2 * (size_t)(at + i) + 1] = v[i] / 2;
        }
    }
    return ORAM_OK;
}

/* --- the index */

static uint64_t flush_of(const oram_cuckoo *p, uint32_t code, uint64_t clock) {
    const uint64_t now = clock / p->c, here = now % CYCLE;
    const uint64_t ago = (here + CYCLE - (code - 2)) % CYCLE;
    return ago > now ? 0 : now - ago; /* later than now is never */
}

/* The table that has the live copy of a block that is there; 0: a top buffer has it. */
static int home(const oram_cuckoo *p, uint32_t code, uint64_t clock, table *found) {
    return code == OLD ? bottom(p, clock, found) : home_of(p, flush_of(p, code, clock), clock, found);
}

/* --- the work of a rebuild */

static uint64_t bucket_end(const oram_cuckoo_level *s, uint64_t k) { return 2 * below64(k * s->width, s->m); }
static uint64_t bucket_at(const walk *w, uint64_t k) { return (w->s->b == 1 ? 0 : k * w->s->b * w->s->r) + bucket_end(w->s, k); }
static uint64_t second_pass(const walk *w) {
    return bucket_at(w, w->s->b) + ORAM_CUCKOO_STASH + (w->s->b == 1 ? 0 : (uint64_t)w->s->b * ORAM_CUCKOO_CHUNK);
}

static void locate_second(walk *w) {
    const oram_cuckoo_level *s = w->s;
    const uint64_t q = w->pos - w->cut, all = bucket_at(w, s->b), read = s->b == 1 ? 0 : (uint64_t)s->b * s->r;
    const uint64_t rest = s->b == 1 ? 0 : (uint64_t)s->b * ORAM_CUCKOO_CHUNK;
    if (q >= all) {
        w->kind = q - all < rest ? MIDDLE : LEFT;
        w->number = w->kind == MIDDLE ? s->b : 0;
        w->begin = w->cut + all + (w->kind == MIDDLE ? 0 : rest);
        w->size = w->kind == MIDDLE ? rest : ORAM_CUCKOO_STASH;
        return;
    }
    uint64_t k = below64(q / (read + 2 * (uint64_t)s->width), s->b - 1);
    while (k > 0 && bucket_at(w, k) > q) k--;
    while (k + 1 < s->b && bucket_at(w, k + 1) <= q) k++;
    const uint64_t at = bucket_at(w, k);
    w->number = (uint32_t)k;
    w->kind = q - at < read ? MIDDLE : OUTPUT;
    w->begin = w->cut + at + (w->kind == MIDDLE ? 0 : read);
    w->size = w->kind == MIDDLE ? read : bucket_end(s, k + 1) - bucket_end(s, k);
}

static uint64_t output_slot(const walk *w) { return w->kind == LEFT ? 2 * (uint64_t)w->s->m : bucket_end(w->s, w->number); }

/* --- who is in a new table, and where */

static int64_t entry_of(const oram_cuckoo_build *g, uint32_t addr) {
    if (g->list != NULL) {
        const uint32_t at = lower_bound(g->list, g->count, addr);
        return at < g->count && g->list[at] == addr ? (int64_t)at : -1;
    }
    const uint32_t word = addr >> 6;
    const uint64_t bit = (uint64_t)1 << (addr & 63);
    if (!(g->member[word] & bit)) return -1;
    uint32_t n = g->rank[addr >> 9] + (uint32_t)__builtin_popcountll(g->member[word] & (bit - 1));
    for (uint32_t w = word & ~7u; w < word; w++) n += (uint32_t)__builtin_popcountll(g->member[w]);
    return n < g->count ? (int64_t)n : -1;
}

/* The next few members, from the cursor on. */
static uint32_t next_members(const oram_cuckoo *p, oram_cuckoo_build *g, uint32_t most, uint32_t *addr) {
    uint32_t n = 0;
    if (g->list != NULL) {
        while (n < most && g->cursor < g->count) addr[n++] = g->list[g->cursor++];
        return n;
    }
    while (n < most && g->cursor < p->N) {
        const uint64_t rest = g->member[g->cursor >> 6] >> (g->cursor & 63);
        if (rest == 0) {
            g->cursor = (g->cursor | 63) + 1;
            continue;
        }
        g->cursor += (uint64_t)__builtin_ctzll(rest);
        addr[n++] = (uint32_t)g->cursor++;
    }
    return n;
}

/* Where the live copy of a block was when a rebuild began, by its code then. -1: it is no member. */
static int32_t source(const oram_cuckoo *p, table t, uint32_t now, uint32_t code) {
    if (code == ABSENT) return -1;
    if (code == OLD) return t.level == p->L ? (int32_t)p->L : -1;
    const uint32_t ago = now >= code ? now - code : now + CYCLE - code;
    if (ago == 0 || (t.level < p->L && ago > (uint32_t)1 << t.level)) return -1;
    if (ago == 1) return CLIENT;
    const uint32_t level = 31 - (uint32_t)__builtin_clz(ago - 1);
    return (int32_t)(level < p->L ? level : p->L);
}

/* Whether no code is one of `span` from `low` on. */
static int none_of(const uint16_t *codes, uint64_t n, uint32_t low, uint32_t span) {
    uint32_t any = 0;
    for (uint64_t i = 0; i < n; i++) any |= (uint16_t)(codes[i] - low) < (uint16_t)span;
    return any == 0;
}

/* Index entries [low, high), from a multiple of 512 on, whose codes are given as they were. */
static int scan(const oram_cuckoo *p, oram_cuckoo_build *g, table t, uint64_t low, uint64_t high, const uint16_t *codes) {
    const uint32_t now = (uint32_t)(t.epoch % CYCLE) + 2, most = p->levels[t.level].n;
    const uint32_t span = (uint32_t)1 << t.level;
    const int plain = t.level < p->L && now >= span + 2; /* the codes of its members are not counted over */
    for (uint64_t a = low; a < high; a += 64) {
        uint64_t word = 0;
        const uint64_t end = below64(64, high - a);
        if (a % 512 == 0) g->rank[a >> 9] = g->count;
        if (plain && none_of(codes + (a - low), end, now - span, span)) {
            g->member[a >> 6] = 0;
            continue;
        }
        for (uint64_t i = 0; i < end; i++) {
            const int32_t from = source(p, t, now, codes[a - low + i]);
            if (from < 0) continue;
            if (g->count == most) return ORAM_BROKEN;
            word |= (uint64_t)1 << i;
            g->kind[g->count++] = (uint8_t)from;
        }
        g->member[a >> 6] = word;
    }
    return ORAM_OK;
}

/* The same where some were asked for since it began. */
static int scan_back(const oram_cuckoo *p, oram_cuckoo_build *g, table t, uint64_t low, uint64_t high) {
    uint16_t codes[BLOCK];
    const uint64_t clock = *p->clock, began = t.epoch * p->c;
    for (uint64_t a = low; a < high; a += BLOCK) {
        const uint64_t n = below64(BLOCK, high - a);
        memcpy(codes, p->code + a, n * sizeof *codes);
        uint64_t at = clock % p->log_size;
        for (uint64_t k = clock; k-- > began;) {
            at = (at == 0 ? p->log_size : at) - 1;
            if (p->log_addr[at] - a < n) codes[p->log_addr[at] - a] = p->log_code[at];
        }
        const int rc = scan(p, g, t, a, a + n, codes);
        if (rc != ORAM_OK) return rc;
    }
    return ORAM_OK;
}

/* Members of a table that is but the top buffer. */
static int scan_page(const oram_cuckoo *p, oram_cuckoo_build *g, table t, const uint16_t *codes) {
    const uint32_t *addr = p->page_addr + page(p, t.epoch - 1) * p->c, now = (uint32_t)(t.epoch % CYCLE) + 2;
    uint32_t n = 0;
    for (uint32_t row = 0; row < p->c; row++)
        if (addr[row] < p->N && source(p, t, now, codes[addr[row]]) == CLIENT) g->list[n++] = addr[row];
    g->count = sort_unique(g->list, n);
    memset(g->kind, CLIENT, g->count);
    return ORAM_OK;
}

/* Begin to bring cells nearer. */
static void reach(const oram_cuckoo_build *g, uint32_t n, const uint32_t *u, const uint32_t *v) {
    for (uint32_t i = 0; i < n; i++) {
        __builtin_prefetch(g->root + u[i]);
        __builtin_prefetch(g->root + v[i]);
        __builtin_prefetch(g->full + u[i]);
        __builtin_prefetch(g->full + v[i]);
    }
}

/* The first entries, in order, that leave no component with more entries than cells are placed. */
static int join(const oram_cuckoo *p, oram_cuckoo_build *g, table t, uint64_t quota) {
    uint32_t addr[FEW], u[FEW], v[FEW];
    while (quota > 0) {
        const uint32_t n = next_members(p, g, (uint32_t)below64(quota, FEW), addr);
        if (n == 0 || n > g->count - g->entry) return n == 0 ? ORAM_OK : ORAM_BROKEN;
        const int rc = cells(p, t, n, addr, u, v);
        if (rc != ORAM_OK) return rc;
        quota -= n;
        reach(g, n, u, v);
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t e = g->entry++, a = root_of(g->root, u[i]), b = root_of(g->root, v[i]);
            g->both[e] = u[i] ^ v[i];
            if (g->full[a] && (a == b || g->full[b])) continue; /* to the stash */
            g->full[b] = a == b || g->full[a] || g->full[b];
            g->root[a] = b;
            g->kind[e] |= OPEN;
        }
    }
    return ORAM_OK;
}

/* Entries that are placed, at their cells. */
static int attach(const oram_cuckoo *p, oram_cuckoo_build *g, table t, uint64_t quota) {
    uint32_t addr[FEW], u[FEW], v[FEW];
    while (quota > 0) {
        const uint32_t n = next_members(p, g, (uint32_t)below64(quota, FEW), addr);
        if (n == 0 || n > g->count - g->entry) return n == 0 ? ORAM_OK : ORAM_BROKEN;
        const int rc = cells(p, t, n, addr, u, v);
        if (rc != ORAM_OK) return rc;
        quota -= n;
        reach(g, n, u, v);
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t e = g->entry++;
            if (!(g->kind[e] & OPEN)) continue;
            if (g->full[u[i]] == UINT8_MAX || g->full[v[i]] == UINT8_MAX) return ORAM_BROKEN;
            g->full[u[i]]++;
            g->full[v[i]]++;
            g->root[u[i]] ^= e;
            g->root[v[i]] ^= e;
        }
    }
    return ORAM_OK;
}

/* Puts an entry into a cell, then as many others as have only one cell left, along the path that begins there. */
static int put(oram_cuckoo_build *g, uint64_t cells_, uint32_t e, uint32_t w) {
    for (;;) {
        if (e >= g->count || !(g->kind[e] & OPEN)) return ORAM_BROKEN;
        const uint32_t other = g->both[e] ^ w;
        if (other >= cells_) return ORAM_BROKEN;
        g->kind[e] = (uint8_t)((g->kind[e] & SOURCE) | (w & 1 ? SECOND : FIRST));
        g->full[w]--;
        g->full[other]--;
        g->root[w] ^= e;
        g->root[other] ^= e;
        if (g->full[other] != 1) return ORAM_OK;
        w = other;
        e = g->root[w];
    }
}

static int64_t cell_of(const oram_cuckoo_build *g, int64_t e, uint32_t u, uint32_t v) {
    return g->kind[e] & FIRST ? (int64_t)u : g->kind[e] & SECOND ? (int64_t)v : -1;
}

/* A member that the client has itself. */
static int own(const oram_cuckoo *p, oram_cuckoo_build *g, table t, uint32_t addr, int64_t e, uint32_t at) {
    uint32_t u, v;
    const int rc = cells(p, t, 1, &addr, &u, &v);
    if (rc != ORAM_OK) return rc;
    const int64_t cell = cell_of(g, e, u, v);
    if (cell >= 0) {
        if (g->mines == p->c + p->stash) return ORAM_BROKEN;
        g->mine[g->mines] = (uint32_t)cell;
        g->mine_at[g->mines++] = at;
        return ORAM_OK;
    }
    const uint32_t *page_addr = p->page_addr + page(p, t.epoch - 1) * p->c;
    for (uint32_t i = 0; i < g->lefts; i++)
        if (at < p->c && g->left[i] < p->c && page_addr[g->left[i]] == addr) {
            g->left[i] = at; /* a later row of the same block */
            return ORAM_OK;
        }
    if (g->lefts == ORAM_CUCKOO_STASH) return ORAM_STASH_FULL;
    g->left[g->lefts++] = at;
    return ORAM_OK;
}

static int own_rows(const oram_cuckoo *p, oram_cuckoo_build *g, table t, uint64_t low, uint64_t high) {
    const uint32_t *addr = p->page_addr + page(p, t.epoch - 1) * p->c;
    for (uint64_t row = low; row < high; row++) {
        const int64_t e = addr[row] < p->N ? entry_of(g, addr[row]) : -1;
        if (e < 0 || (g->kind[e] & SOURCE) != CLIENT) continue;
        const int rc = own(p, g, t, addr[row], e, (uint32_t)row);
        if (rc != ORAM_OK) return rc;
    }
    return ORAM_OK;
}

/* The blocks that the inputs left over, in ascending order. */
static int own_stash(const oram_cuckoo *p, oram_cuckoo_build *g, table t) {
    walk w;
    work(&w, p, t);
    for (uint64_t from = 0;;) {
        uint32_t best = p->stash;
        int64_t entry = -1;
        for (uint32_t i = 0; i < p->stash; i++) {
            if (p->stash_of[i] < 0 || p->stash_addr[i] < from || p->stash_addr[i] >= p->N) continue;
            if (best < p->stash && p->stash_addr[i] >= p->stash_addr[best]) continue;
            const int64_t e = entry_of(g, p->stash_addr[i]);
            for (uint32_t j = 0; e >= 0 && j < w.count; j++) {
                const table old = {w.inputs[j].level, w.inputs[j].epoch};
                if (p->stash_of[i] != place_of(p, old) || (g->kind[e] & SOURCE) != old.level) continue;
                best = i;
                entry = e;
            }
        }
        if (best == p->stash) return ORAM_OK;
        const int rc = own(p, g, t, p->stash_addr[best], entry, p->c + best);
        if (rc != ORAM_OK) return rc;
        from = (uint64_t)p->stash_addr[best] + 1;
    }
}

/* A placement is a phase after the other, each of a fixed number of steps, whoever the members are; `weights` makes them take about as long. */
enum { SCAN, CLEAR, JOIN, CLEAR_AGAIN, ATTACH, TREES, CYCLES, OWN_ROWS, OWN_STASH, PHASES };
static const uint64_t weights[PHASES] = {3, 8, 96, 1, 48, 108, 5, 32, 1}; /* CLEAR meets memory that is new */

/* Steps before a phase. listed: members are in a list. */
static uint64_t steps_before(const oram_cuckoo *p, uint32_t level, int listed, int phase) {
    const oram_cuckoo_level *s = &p->levels[level];
    const uint64_t all = 2 * (uint64_t)s->m, units[PHASES] = {listed ? p->c : p->N, all, s->n, all, s->n, all, s->n, p->c, 1};
    uint64_t sum = 0;
    for (int i = 0; i < phase; i++) sum += weights[i] * units[i];
    return sum;
}

/* The placement as far as `until`, in steps. codes: NULL, or those of the time when it began. */
static int place(const oram_cuckoo *p, oram_cuckoo_build *g, table t, uint64_t until, const uint16_t *codes) {
    const oram_cuckoo_level *s = &p->levels[t.level];
    const uint64_t all = 2 * (uint64_t)s->m;
    for (int phase = SCAN; phase < PHASES; phase++) {
        const uint64_t weight = weights[phase], first = steps_before(p, t.level, g->list != NULL, phase);
        const uint64_t end = steps_before(p, t.level, g->list != NULL, phase + 1), n = (end - first) / weight;
        if (g->position >= end || until <= first) continue;
        uint64_t low = g->position <= first ? 0 : (g->position - first) / weight, high = until >= end ? n : (until - first) / weight;
        int rc = ORAM_OK;
        if (low == 0) g->cursor = g->entry = 0;
        switch (phase) {
        case SCAN:
            if (g->list != NULL) {
                if (high == n) rc = scan_page(p, g, t, codes == NULL ? p->code : codes);
                break;
            }
            low &= ~(uint64_t)511;
            if (high < n) high &= ~(uint64_t)511;
            rc = codes == NULL ? scan_back(p, g, t, low, high) : scan(p, g, t, low, high, codes + low);
            break;
        case CLEAR:
            for (uint64_t w = low; w < high; w++) g->root[w] = (uint32_t)w;
            memset(g->full + low, 0, high - low);
            break;
        case JOIN: rc = join(p, g, t, high - low); break;
        case CLEAR_AGAIN:
            memset(g->root + low, 0, (high - low) * sizeof *g->root);
            memset(g->full + low, 0, high - low);
            break;
        case ATTACH: rc = attach(p, g, t, high - low); break;
        case TREES: { /* trees, from their leaves, in an order that favours neither low nor high cells to stay empty */
            const uint64_t stride = s->stride % all;
            uint64_t w = low * stride % all, soon = (low + 16) * stride % all; /* all <= 2^32 */
            for (uint64_t k = low; k < high && rc == ORAM_OK; k++) {
                __builtin_prefetch(g->full + soon);
                __builtin_prefetch(g->root + soon);
                if (g->full[w] == 1) rc = put(g, all, g->root[w], (uint32_t)w);
                w += stride;
                soon += stride;
                if (w >= all) w -= all;
                if (soon >= all) soon -= all;
            }
            break;
        }
        case CYCLES:
            for (uint64_t e = low; e < high && rc == ORAM_OK;) {
                uint32_t addr[FEW], u[FEW], v[FEW];
                const uint32_t few = next_members(p, g, (uint32_t)below64(high - e, FEW), addr);
                if (few == 0) break;
                uint32_t any = 0;
                for (uint32_t i = 0; i < few && g->entry + i < g->count; i++) any |= g->kind[g->entry + i] & OPEN;
                if (any) rc = cells(p, t, few, addr, u, v);
                for (uint32_t i = 0; i < few && any && rc == ORAM_OK; i++)
                    if (g->entry + i < g->count && (g->kind[g->entry + i] & OPEN)) rc = put(g, all, g->entry + i, u[i]);
                g->entry += few;
                e += few;
            }
            break;
        case OWN_ROWS: rc = own_rows(p, g, t, low, high); break;
        case OWN_STASH:
            rc = own_stash(p, g, t);
            g->placed = 1;
            break;
        default: break;
        }
        if (rc != ORAM_OK) return rc;
    }
    g->position = until;
    return ORAM_OK;
}

static uint64_t placement(const oram_cuckoo *p, uint32_t level) { return steps_before(p, level, level == 0, PHASES); }

static int begin(const oram_cuckoo *p, table t) {
    oram_cuckoo_build *g = &p->builds[t.level];
    if (g->kind == NULL || g->both == NULL) return ORAM_BROKEN; /* no memory was lent */
    g->epoch = t.epoch;
    g->active = 1;
    g->placed = g->count = g->mines = g->lefts = 0;
    g->position = 0;
    g->reading = g->writing = -1;
    g->held = g->settled = g->rest = 0;
    return ORAM_OK;
}

/* --- what a rebuild reads and writes */

static int32_t name(const run *x) { return (int32_t)(x->number * 8 + x->kind); }

/* Gives blocks in hand their places in what is written next, so many of them. */
static int settle(const oram_cuckoo *p, oram_cuckoo_build *g, table t, uint64_t quota) {
    const oram_cuckoo_level *s = &p->levels[t.level];
    const uint32_t kind = (uint32_t)g->reading % 8, number = (uint32_t)g->reading / 8;
    const uint64_t first = kind == MIDDLE ? bucket_end(s, number) : 0, end = kind == MIDDLE ? bucket_end(s, (uint64_t)number + 1) : 2 * (uint64_t)s->m;
    while (g->settled < g->held && quota > 0) {
        uint32_t u[FEW], v[FEW];
        const uint32_t few = (uint32_t)below64(below64(quota, FEW), g->held - g->settled);
        quota -= few;
        const int all = kind == MIDDLE && number == s->b; /* what the chunks left over */
        const int rc = all ? ORAM_OK : cells(p, t, few, g->hand_addr + g->settled, u, v);
        if (rc != ORAM_OK) return rc;
        for (uint32_t i = 0; i < few; i++) {
            const uint32_t at = g->settled++;
            const int64_t e = all || g->hand_addr[at] >= p->N ? -1 : entry_of(g, g->hand_addr[at]), cell = e < 0 ? -1 : cell_of(g, e, u[i], v[i]);
            if (kind == INPUT && s->b > 1) {
                const uint64_t k = cell < 0 ? 0 : (uint64_t)cell / 2 / s->width;
                if (cell >= 0 && g->fill[k] < s->r)
                    g->content[k * s->r + g->fill[k]++] = at + 1;
                else if (g->rest == ORAM_CUCKOO_CHUNK)
                    return ORAM_STASH_FULL;
                else
                    g->content[(size_t)s->b * s->r + g->rest++] = at + 1;
            } else if (cell < 0) {
                if (kind == MIDDLE && !all) continue; /* it never is */
                if (g->rest == ORAM_CUCKOO_STASH) return ORAM_STASH_FULL;
                g->stash[g->rest++] = at;
            } else if ((uint64_t)cell >= first && (uint64_t)cell < end) {
                g->content[(uint64_t)cell - first] = at + 1;
            }
        }
    }
    return ORAM_OK;
}

/* Another segment is read from here on. */
static void open_hand(const oram_cuckoo *p, oram_cuckoo_build *g, table t, int32_t segment) {
    const oram_cuckoo_level *s = &p->levels[t.level];
    g->reading = segment;
    g->held = g->settled = g->rest = 0;
    memset(g->content, 0, g->contents * sizeof *g->content);
    memset(g->fill, 0, s->b * sizeof *g->fill);
}

/* The code that an address had when a rebuild began, of which the log has the accesses since: those before `until`. */
static uint32_t code_then(const oram_cuckoo *p, table t, uint32_t addr, uint64_t until) {
    const uint32_t code = p->code[addr];
    if (code == OLD || (code > OLD && flush_of(p, code, until) < t.epoch)) return code;
    uint64_t at = t.epoch * p->c % p->log_size;
    for (uint64_t k = t.epoch * p->c; k < until; k++, at = at + 1 == p->log_size ? 0 : at + 1)
        if (p->log_addr[at] == addr) return p->log_code[at];
    return code;
}

/* A slot read: the live copies of members stay in hand. Who they are is known before the placement is. */
static int take(const oram_cuckoo *p, oram_cuckoo_build *g, const run *x, uint32_t addr, const uint8_t *block) {
    if (addr == ORAM_EMPTY) return ORAM_OK;
    if (addr >= p->N) return ORAM_BROKEN;
    if (x->kind == INPUT && g->placed) {
        const int64_t e = entry_of(g, addr);
        if (e < 0 || (g->kind[e] & SOURCE) != x->level) return ORAM_OK;
    } else if (x->kind == INPUT) {
        const table t = {(uint32_t)(g - p->builds), g->epoch};
        if (source(p, t, (uint32_t)(t.epoch % CYCLE) + 2, code_then(p, t, addr, *p->clock + 1)) != (int32_t)x->level) return ORAM_OK;
    }
    if (g->held == g->hands) return x->kind == INPUT ? ORAM_STASH_FULL : ORAM_BROKEN;
    g->hand_addr[g->held] = addr;
    memcpy(g->hand + (size_t)g->held++ * p->B, block, p->B);
    return ORAM_OK;
}

static const uint8_t *owned(const oram_cuckoo *p, table t, uint32_t at, uint32_t *addr) {
    if (at < p->c) {
        const size_t row = page(p, t.epoch - 1) * p->c + at;
        *addr = p->page_addr[row];
        return p->page_data + row * p->B;
    }
    *addr = p->stash_addr[at - p->c];
    return p->stash_data + (size_t)(at - p->c) * p->B;
}

/* Another segment is written from here on. */
static int compose(oram_cuckoo *p, oram_cuckoo_build *g, table t, const run *x) {
    const oram_cuckoo_level *s = &p->levels[t.level];
    int rc;
    if (!g->placed) return ORAM_BROKEN;
    if (g->reading < 0) open_hand(p, g, t, INPUT); /* nothing was read: there are no inputs */
    if ((rc = settle(p, g, t, g->held)) != ORAM_OK) return rc;
    g->writing = name(x);
    if (x->kind == OUTPUT) {
        const uint64_t first = bucket_end(s, x->number);
        for (uint32_t i = 0; i < g->mines; i++)
            if (g->mine[i] >= first && g->mine[i] - first < x->size) g->content[g->mine[i] - first] = 1 + g->hands + g->mine_at[i];
    } else if (x->kind == LEFT) {
        if (g->rest + g->lefts > ORAM_CUCKOO_STASH) return ORAM_STASH_FULL;
        for (uint32_t i = 0; i < g->lefts; i++) g->stash[g->rest++] = g->hands + g->left[i];
        for (uint32_t i = 0; i < g->rest; i++) {
            uint32_t addr = 0;
            const uint8_t *block = NULL;
            if (g->stash[i] < g->hands) {
                addr = g->hand_addr[g->stash[i]];
                block = g->hand + (size_t)g->stash[i] * p->B;
            } else {
                block = owned(p, t, g->stash[i] - g->hands, &addr);
            }
            if ((rc = keep(p, t, addr, block)) != ORAM_OK) return rc;
        }
    }
    return ORAM_OK;
}

/* The content of a slot to be written, in clear. */
static void give(const oram_cuckoo *p, const oram_cuckoo_build *g, table t, const run *x, uint64_t at, uint8_t *row) {
    const uint8_t *block = NULL;
    uint32_t addr = ORAM_EMPTY, what = 0;
    if (x->kind == LEFT)
        what = at < g->rest ? g->stash[at] + 1 : 0;
    else if (at < g->contents)
        what = g->content[at];
    if (what > g->hands) {
        block = owned(p, t, what - 1 - g->hands, &addr);
    } else if (what > 0) {
        addr = g->hand_addr[what - 1];
        block = g->hand + (size_t)(what - 1) * p->B;
    }
    st32(row, addr);
    if (block == NULL)
        memset(row + 4, 0, p->B);
    else
        memcpy(row + 4, block, p->B);
}

/* --- the plan */

/* A slot is read, unless the batch has written it before. */
static void read_slot(oram_cuckoo_batch *q, uint64_t slot, uint64_t epoch) {
    int32_t from = (int32_t)q->fetches;
    if (q->distinct <= q->distinct_room && q->known_mask > 0) {
        const int32_t at = q->known[known_cell(q->known, q->known_mask, q->written, slot)];
        if (at >= 0) from = -1 - at;
    }
    if (q->reads < q->read_room) q->from[q->reads] = from;
    q->reads++;
    if (from < 0) return;
    if (q->fetches < q->fetch_room) {
        q->slot[q->fetches] = slot;
        q->epoch[q->fetches] = epoch;
    }
    q->fetches++;
}

static void write_slot(oram_cuckoo_batch *q, uint64_t slot, uint64_t epoch) {
    uint32_t at = q->distinct;
    if (at <= q->distinct_room && q->known_mask > 0) {
        const uint32_t i = known_cell(q->known, q->known_mask, q->written, slot);
        if (q->known[i] >= 0)
            at = (uint32_t)q->known[i];
        else if (at < q->distinct_room)
            q->known[i] = (int32_t)at;
    }
    if (at == q->distinct) q->distinct++;
    if (at < q->distinct_room) {
        q->written[at] = slot;
        q->sealed_as[at] = epoch;
    }
    if (q->writes < q->write_room) q->to[q->writes] = at;
    q->writes++;
}

int oram_cuckoo_plan(const oram_cuckoo *p, uint32_t m, const uint8_t *ops, const uint32_t *addrs, const uint8_t *seed, oram_cuckoo_batch *q) {
    int rc = coins_start(p->coins, seed);
    if (rc != ORAM_OK) return rc;
    q->m = m;
    q->clock = *p->clock;
    q->reads = q->fetches = q->probes = q->writes = q->distinct = 0;
    memset(q->last, 0xff, ((size_t)q->last_mask + 1) * sizeof *q->last);
    memset(q->known, 0xff, ((size_t)q->known_mask + 1) * sizeof *q->known);
    for (uint32_t r = 0; r < m; r++) {
        const uint64_t clock = *p->clock + r;
        table tables[ORAM_CUCKOO_LEVELS * PLACES], here = {0, 0};
        uint32_t code = ABSENT, u, v;
        q->real[r] = -1;
        q->home[r] = -2;
        if (ops[r] != ORAM_DUMMY) {
            if (addrs[r] >= p->N) return ORAM_BROKEN;
            const uint32_t i = table_cell(q->last, q->last_mask, addrs, addrs[r]);
            code = q->last[i] < 0 ? p->code[addrs[r]] : q->after[q->last[i]];
            q->last[i] = (int32_t)r;
            q->after[r] = ops[r] == ORAM_REMOVE || (ops[r] == ORAM_READ && code == ABSENT) ? ABSENT : 2 + (uint32_t)(clock / p->c % CYCLE);
        }
        const int is = code != ABSENT && home(p, code, clock, &here);
        if (code != ABSENT) q->home[r] = is ? place_of(p, here) : -1;
        const uint32_t n = alive(p, clock, tables);
        q->count[r] = n;
        for (uint32_t i = 0; i < n; i++) {
            const uint64_t first = first_slot(p, tables[i]);
            /* drawn for a real probe too */
            if ((rc = coins_below(p->coins, p->levels[tables[i].level].m, &u)) != ORAM_OK) return rc;
            if ((rc = coins_below(p->coins, p->levels[tables[i].level].m, &v)) != ORAM_OK) return rc;
            u = 2 * u;
            v = 2 * v + 1;
            if (is && tables[i].level == here.level && tables[i].epoch == here.epoch) {
                q->real[r] = (int32_t)i;
                if ((rc = cells(p, here, 1, &addrs[r], &u, &v)) != ORAM_OK) return rc;
            }
            if (q->probes < q->probe_room) {
                q->probe[2 * (size_t)q->probes] = first + u;
                q->probe[2 * (size_t)q->probes + 1] = first + v;
            }
            q->probes++;
            read_slot(q, first + u, tables[i].epoch);
            read_slot(q, first + v, tables[i].epoch);
        }
        const uint32_t builds = running(p, clock, tables);
        for (int writing = 0; writing < 2; writing++) /* no access reads what it writes */
            for (uint32_t i = 0; i < builds; i++) {
                walk w;
                run x;
                work(&w, p, tables[i]);
                share(&w, clock - tables[i].epoch * p->c);
                while (next_run(&w, &x)) {
                    if ((x.kind != INPUT && x.kind != MIDDLE) != writing) continue;
                    for (uint64_t k = 0; k < x.count; k++) {
                        if (writing)
                            write_slot(q, x.slot + k, x.epoch);
                        else
                            read_slot(q, x.slot + k, x.epoch);
                    }
                }
            }
    }
    return q->reads > q->read_room || q->fetches > q->fetch_room || q->probes > q->probe_room || q->writes > q->write_room || q->distinct > q->distinct_room
               ? ORAM_NO_ROOM
               : ORAM_OK;
}

/* --- the access */

/* Begin to bring a slot of a region nearer; the processor goes on by itself. */
static void fetch_ahead(const uint8_t *sealed, size_t len) {
    for (size_t i = 0; i < len && i < 1024; i += 64) __builtin_prefetch(sealed + i);
}

/* Where a block's newest row in a top buffer is; NULL if it has none. */
static const uint8_t *in_page(const oram_cuckoo *p, uint32_t addr, uint64_t flush, uint64_t clock) {
    const size_t at = page(p, flush) * p->c;
    const uint32_t *rows = p->page_addr + at;
    uint32_t row = flush == clock / p->c ? (uint32_t)(clock % p->c) : p->c;
    while (row-- > 0)
        if (rows[row] == addr) return p->page_data + (at + row) * p->B;
    return NULL;
}

static const uint8_t *in_stash(const oram_cuckoo *p, uint32_t addr, int32_t home_) {
    for (uint32_t i = 0; i < p->stash; i++)
        if (p->stash_of[i] == home_ && p->stash_addr[i] == addr) return p->stash_data + (size_t)i * p->B;
    return NULL;
}

/* A few entries of the index, in turn: what is in the bottom anyway is OLD, before its flush is counted over. */
static void age(const oram_cuckoo *p, uint64_t clock) {
    table t;
    if (!bottom(p, clock + 1, &t)) return;
    for (uint64_t k = clock * p->each; k < (clock + 1) * p->each; k++) {
        uint16_t *code = p->code + k % p->N;
        if (*code > OLD && flush_of(p, *code, clock + 1) < t.epoch) *code = OLD;
    }
}

int oram_cuckoo_access(oram_cuckoo *p, oram_keys *keys, const oram_cuckoo_batch *q, const uint8_t *ops, const uint32_t *addrs, uint8_t *sealed,
                       uint8_t *present, int in_place, uint8_t *plain, const uint8_t *data, uint8_t *written, uint16_t *before, uint8_t *out,
                       uint8_t *where, uint8_t *after) {
    const size_t B = p->B, pitch = slot_size(p), rows = row_size(p);
    const uint64_t counter = keys->counter;
    uint32_t read = 0, write = 0;
    int rc, bad = ORAM_OK;
    if (q->clock != *p->clock) return ORAM_BROKEN; /* another plan */
    if (counter + q->distinct > (uint64_t)1 << ORAM_COUNTER_BITS) return ORAM_CIPHER_FAILED;
    for (uint32_t i = 0; i < q->fetches; i++) {
        const size_t at = in_place ? (size_t)q->slot[i] : i;
        if (in_place && i + AHEAD < q->fetches) fetch_ahead(sealed + q->slot[i + AHEAD] * pitch, pitch);
        rc = open_slot(p, keys, q->slot[i], q->epoch[i], sealed + at * pitch, present[at], plain + i * rows);
        if (rc > 0) return rc;
        bad |= rc;
    }
    if (bad != ORAM_OK) return ORAM_TAMPERED;
    for (uint32_t r = 0; r < q->m; r++) /* the buffers were the caller's since they were planned for */
        if (ops[r] != ORAM_DUMMY && addrs[r] >= p->N) return ORAM_BROKEN;
#define ROW(k) (q->from[k] >= 0 ? plain + (size_t)q->from[k] * rows : written + (size_t)(-1 - q->from[k]) * pitch + 8)

    for (uint32_t r = 0; r < q->m; r++) {
        const uint64_t clock = *p->clock, flush = clock / p->c;
        const uint32_t addr = addrs[r];
        table tables[ORAM_CUCKOO_LEVELS * PLACES];
        const uint32_t builds = running(p, clock, tables);
        for (uint32_t i = 0; i < builds; i++) {
            oram_cuckoo_build *g = &p->builds[tables[i].level];
            const oram_cuckoo_level *s = &p->levels[tables[i].level];
            const uint64_t k = clock - tables[i].epoch * p->c, all = placement(p, tables[i].level);
            if (!g->active || g->epoch != tables[i].epoch) {
                if (k > 0) return ORAM_BROKEN;
                if ((rc = begin(p, tables[i])) != ORAM_OK) return rc;
            }
            if (!g->placed && (rc = place(p, g, tables[i], k + 1 >= s->steps ? all : all / s->steps * (k + 1), NULL)) != ORAM_OK) return rc;
        }

        /* Serve. */
        const uint32_t code = ops[r] == ORAM_DUMMY ? ABSENT : p->code[addr];
        const uint8_t *block = NULL;
        before[r] = (uint16_t)code;
        if ((uint64_t)read + 2 * (uint64_t)q->count[r] > q->reads) return ORAM_BROKEN;
        if (q->real[r] >= 0) {
            for (uint32_t i = 0; i < 2; i++) {
                const uint8_t *row = ROW(read + 2 * (uint32_t)q->real[r] + i);
                if (ld32(row) == addr) block = row + 4;
            }
            if (block == NULL) block = in_stash(p, addr, q->home[r]);
            if (block == NULL) return ORAM_TAMPERED;
        } else if (code != ABSENT) {
            if (q->home[r] != -1 || code == OLD) return ORAM_BROKEN;
            block = in_page(p, addr, flush_of(p, code, clock), clock);
            if (block == NULL) return ORAM_BROKEN;
        }
        read += 2 * q->count[r];
        if (block == NULL)
            memset(out + r * B, 0, B);
        else
            memcpy(out + r * B, block, B);

        /* Every access adds one row to the top buffer, and one to the log. */
        if (ops[r] == ORAM_WRITE) block = data + r * B;
        if (ops[r] == ORAM_REMOVE) block = NULL;
        if (ops[r] == ORAM_READ && block != NULL) block = out + r * B;
        const size_t row = page(p, flush) * p->c + clock % p->c, at = clock % p->log_size;
        p->log_addr[at] = ops[r] == ORAM_DUMMY ? ORAM_EMPTY : addr;
        p->log_code[at] = (uint16_t)code;
        p->page_addr[row] = block == NULL ? ORAM_EMPTY : addr;
        if (block == NULL) {
            memset(p->page_data + row * B, 0, B);
            memset(after + r * B, 0, B);
        } else {
            memcpy(p->page_data + row * B, block, B);
            memcpy(after + r * B, block, B);
        }
        if (ops[r] != ORAM_DUMMY) p->code[addr] = (uint16_t)(block == NULL ? ABSENT : 2 + flush % CYCLE);
        where[r] = ops[r] == ORAM_DUMMY ? ORAM_AT_REPEAT : block == NULL ? ORAM_AT_NONE : ORAM_AT_POOL;

        /* The next share of each rebuild. */
        for (uint32_t i = 0; i < builds; i++) {
            oram_cuckoo_build *g = &p->builds[tables[i].level];
            walk w;
            run x;
            work(&w, p, tables[i]);
            share(&w, clock - tables[i].epoch * p->c);
            while (next_run(&w, &x)) {
                if (x.kind == INPUT || x.kind == MIDDLE) {
                    if (x.count > q->reads - read) return ORAM_BROKEN;
                    if (g->reading != name(&x)) open_hand(p, g, tables[i], name(&x));
                    for (uint64_t k = 0; k < x.count; k++, read++) {
                        const uint8_t *found = ROW(read);
                        if ((rc = take(p, g, &x, ld32(found), found + 4)) != ORAM_OK) return rc;
                    }
                    /* those that came before the placement was done, in a third of its time */
                    const uint64_t quota = x.count + 1 + g->hands / (p->levels[tables[i].level].steps / 3 + 1);
                    if (g->placed && (rc = settle(p, g, tables[i], quota)) != ORAM_OK) return rc;
                } else {
                    if (x.count > q->writes - write) return ORAM_BROKEN;
                    if (g->writing != name(&x) && (rc = compose(p, g, tables[i], &x)) != ORAM_OK) return rc;
                    for (uint64_t k = 0; k < x.count; k++, write++)
                        give(p, g, tables[i], &x, x.at + k, written + (size_t)q->to[write] * pitch + 8);
                }
            }
        }

        *p->clock = clock + 1;
        age(p, clock);
        for (uint32_t i = 0; i < builds; i++) {
            if (done(p, tables[i]) != clock + 1) continue;
            walk w;
            work(&w, p, tables[i]);
            for (uint32_t j = 0; j < w.count; j++) drop(p, (table){w.inputs[j].level, w.inputs[j].epoch});
            p->builds[tables[i].level].active = 0;
        }
    }
#undef ROW

    keys->counter += q->distinct; /* before the first seal */
    for (uint32_t i = 0; i < q->distinct; i++) {
        uint8_t *row = written + i * pitch;
        const size_t at = (size_t)q->written[i];
        if ((rc = seal_slot(p, keys, counter + i, at, q->sealed_as[i], row + 8, in_place ? sealed + at * pitch : row)) != ORAM_OK) return rc;
        if (in_place) present[at] = 1;
    }
    return ORAM_OK;
}

/* --- after an opening */

int oram_cuckoo_stash(oram_cuckoo *p, uint32_t level, uint64_t epoch, uint32_t n, const uint32_t *addr, const uint8_t *blocks) {
    for (uint32_t i = 0; i < n; i++) {
        if (addr[i] == ORAM_EMPTY) continue;
        const int rc = keep(p, (table){level, epoch}, addr[i], blocks + (size_t)i * p->B);
        if (rc != ORAM_OK) return rc;
    }
    return ORAM_OK;
}

int oram_cuckoo_begin(oram_cuckoo *p, uint32_t level, uint64_t epoch, uint16_t *codes) {
    const table t = {level, epoch};
    const uint64_t began = epoch * p->c;
    if (*p->clock - began > p->levels[level].duration) return ORAM_BROKEN;
    for (uint64_t k = *p->clock; k-- > began;) {
        const uint64_t at = k % p->log_size;
        if (p->log_addr[at] < p->N) codes[p->log_addr[at]] = p->log_code[at];
    }
    const int rc = begin(p, t);
    return rc != ORAM_OK ? rc : place(p, &p->builds[level], t, placement(p, level), codes);
}

int oram_cuckoo_again(oram_cuckoo *p, uint32_t level, uint64_t low, uint64_t high, const uint32_t *addr, const uint8_t *blocks) {
    oram_cuckoo_build *g = &p->builds[level];
    const table t = {level, g->epoch};
    walk w;
    run x;
    if (!g->active || !g->placed) return ORAM_BROKEN;
    work(&w, p, t);
    w.pos = low;
    w.high = below64(high, w.end);
    for (size_t i = 0; next_run(&w, &x);) {
        if (x.kind != INPUT && x.kind != MIDDLE) return ORAM_BROKEN;
        if (g->reading != name(&x)) open_hand(p, g, t, name(&x));
        for (uint64_t k = 0; k < x.count; k++, i++) {
            const int rc = take(p, g, &x, addr[i], blocks + i * p->B);
            if (rc != ORAM_OK) return rc;
        }
    }
    return settle(p, g, t, g->held);
}

/* --- bulk */

int oram_cuckoo_place(oram_cuckoo *p, uint32_t level, uint64_t epoch, uint32_t n, int64_t *cell) {
    oram_cuckoo_build *g = &p->builds[level];
    const table t = {level, epoch};
    int rc = begin(p, t);
    g->active = 0;
    if (rc != ORAM_OK) return rc;
    if (g->list == NULL || n > p->levels[level].n) return ORAM_BROKEN;
    g->count = n;
    memset(g->kind, CLIENT, n);
    g->position = steps_before(p, level, 1, CLEAR); /* they are known */
    rc = place(p, g, t, steps_before(p, level, 1, OWN_ROWS), NULL);
    for (uint32_t at = 0; at < n && rc == ORAM_OK; at += FEW) {
        uint32_t u[FEW], v[FEW];
        const uint32_t few = n - at < FEW ? n - at : FEW;
        rc = cells(p, t, few, g->list + at, u, v);
        for (uint32_t i = 0; i < few; i++) cell[at + i] = cell_of(g, at + i, u[i], v[i]);
    }
    return rc;
}

int oram_cuckoo_open(const oram_cuckoo *p, const oram_keys *keys, uint32_t n, const uint64_t *slots, const uint64_t *epochs, const uint8_t *sealed,
                     const uint8_t *present, uint8_t *rows) {
    int bad = ORAM_OK;
    for (uint32_t i = 0; i < n; i++) {
        const int rc = open_slot(p, keys, slots[i], epochs[i], sealed + i * slot_size(p), present[i], rows + i * row_size(p));
        if (rc > 0) return rc;
        bad |= rc;
    }
    return bad == ORAM_OK ? ORAM_OK : ORAM_TAMPERED;
}

int oram_cuckoo_seal(const oram_cuckoo *p, oram_keys *keys, uint32_t n, const uint64_t *slots, uint64_t epoch, const int64_t *source_,
                     const uint32_t *addr, const uint8_t *blocks, uint8_t *sealed) {
    const uint64_t counter = keys->counter;
    if (counter + n > (uint64_t)1 << ORAM_COUNTER_BITS) return ORAM_CIPHER_FAILED;
    keys->counter += n; /* before the first seal */
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *to = sealed + i * slot_size(p);
        st32(to + 8, source_[i] < 0 ? ORAM_EMPTY : addr[source_[i]]);
        if (source_[i] < 0)
            memset(to + 12, 0, p->B);
        else
            memcpy(to + 12, blocks + (size_t)source_[i] * p->B, p->B);
        const int rc = seal_slot(p, keys, counter + i, slots[i], epoch, to + 8, to);
        if (rc != ORAM_OK) return rc;
    }
    return ORAM_OK;
}
