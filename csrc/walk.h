/* The work of a rebuild, in order: which slots its accesses read and write. oram/params/cuckoo.py explains it (Work, Segment, Part). Included once by each kind
 * of table, which says in three functions what its second pass is. */
#ifndef ORAM_WALK_H
#define ORAM_WALK_H
#include "hierarchy.h"

enum { INPUT, EMIT, MIDDLE, OUTPUT, LEFT };

typedef struct {
    uint32_t level;
    uint64_t epoch, first, size;
} input;

/* A stretch of a rebuild's work, and how far one has come. */
typedef struct {
    const oram_cuckoo *p;
    const oram_cuckoo_level *s;
    table t;
    input inputs[ORAM_CUCKOO_LEVELS];
    uint32_t count;
    uint64_t cut, end;     /* of the first pass, of the second */
    uint64_t pos, high;    /* the stretch */
    uint32_t kind, number; /* the segment there */
    uint64_t begin, size;
} walk;

/* Slots in order that lie one after the other. level: of the input. */
typedef struct {
    uint32_t kind, number, level;
    uint64_t at, slot, count, epoch;
    uint64_t size; /* of the segment */
} run;

/* What the two kinds of tables have of their own: slots that the second pass moves, the segment of it where we are, and the slot of a table in which a
 * segment that is written begins. */
static uint64_t second_pass(const walk *w);
static void locate_second(walk *w);
static uint64_t output_slot(const walk *w);

static uint64_t per_chunk(const oram_cuckoo_level *s) { return s->b == 1 ? 0 : (uint64_t)s->b * s->r + s->spare; }

/* Slots that the chunks before this one read. */
static uint64_t chunk_begin(const walk *w, uint64_t i) {
    uint64_t sum = 0;
    for (uint32_t j = 0; j < w->count; j++) sum += w->inputs[j].size * i / w->s->b;
    return sum;
}

static uint64_t chunk_at(const walk *w, uint64_t i) { return chunk_begin(w, i) + i * per_chunk(w->s); }

static void work(walk *w, const oram_cuckoo *p, table t) {
    const oram_cuckoo_level *s = &p->levels[t.level];
    w->p = p;
    w->s = s;
    w->t = t;
    w->count = 0;
    for (uint32_t level = 0; level < t.level && level < p->L; level++) {
        const table old = {level, t.epoch - ((uint64_t)1 << level)};
        w->inputs[w->count++] = (input){level, old.epoch, first_slot(p, old), p->levels[level].scanned};
    }
    table old;
    if (t.level == p->L && bottom(p, t.epoch * p->c, &old)) w->inputs[w->count++] = (input){p->L, old.epoch, first_slot(p, old), s->scanned};
    w->cut = chunk_at(w, s->b);
    w->end = w->cut + second_pass(w);
    w->begin = w->size = w->pos = w->high = 0;
}

/* What the k-th access of the rebuild does: an equal share of its pass. */
static void share(walk *w, uint64_t k) {
    const uint64_t first = w->s->first, second = w->s->duration - first;
    if (k < first) {
        w->pos = w->cut * k / first;
        w->high = w->cut * (k + 1) / first;
    } else {
        w->pos = k == 0 ? 0 : w->cut + (w->end - w->cut) * (k - first) / second;
        w->high = w->cut + (w->end - w->cut) * (k - first + 1) / second;
    }
}

/* The segment where we are. */
static void locate(walk *w) {
    const oram_cuckoo_level *s = w->s;
    if (w->pos < w->cut) {
        uint64_t i = below64(w->pos * s->b / w->cut, s->b - 1);
        while (i > 0 && chunk_at(w, i) > w->pos) i--;
        while (i + 1 < s->b && chunk_at(w, i + 1) <= w->pos) i++;
        const uint64_t at = chunk_at(w, i), read = chunk_begin(w, i + 1) - chunk_begin(w, i);
        w->number = (uint32_t)i;
        w->kind = w->pos - at < read ? INPUT : EMIT;
        w->begin = w->kind == INPUT ? at : at + read;
        w->size = w->kind == INPUT ? read : per_chunk(s);
        return;
    }
    locate_second(w);
}

/* The next slots of the stretch; 0 at its end. */
static int next_run(walk *w, run *out) {
    const oram_cuckoo_level *s = w->s;
    const uint64_t b = s->b, r = s->r;
    if (w->pos >= w->high) return 0;
    if (w->pos < w->begin || w->pos >= w->begin + w->size) locate(w);
    const uint64_t at = w->pos - w->begin;
    uint64_t n = below64(w->high, w->begin + w->size) - w->pos;
    *out = (run){.kind = w->kind, .number = w->number, .level = w->t.level, .at = at, .epoch = w->t.epoch, .size = w->size};
    if (w->kind == INPUT) {
        uint64_t below = 0;
        for (uint32_t j = 0; j < w->count; j++) {
            const input *in = &w->inputs[j];
            const uint64_t low = in->size * w->number / b, high = in->size * ((uint64_t)w->number + 1) / b;
            if (at - below < high - low) {
                out->slot = in->first + low + at - below;
                out->level = in->level;
                out->epoch = in->epoch;
                n = below64(n, high - low - (at - below));
                break;
            }
            below += high - low;
        }
    } else if (w->kind == EMIT && at < b * r) {
        out->slot = s->middle + (at / r * b + w->number) * r + at % r;
        n = below64(n, r - at % r);
    } else if (w->kind == EMIT) {
        out->slot = s->middle + b * b * r + (uint64_t)w->number * s->spare + at - b * r;
    } else if (w->kind == MIDDLE) {
        out->slot = s->middle + w->number * b * r + at;
    } else {
        out->slot = first_slot(w->p, w->t) + output_slot(w) + at;
    }
    out->count = n;
    w->pos += n;
    return 1;
}
#endif
