/* One pass over a tile of activations: statistics and example lists of every feature in it.

   A tile is windows x positions x features, features contiguous. Positions that do not count (padding, special
   tokens, massive ones) are passed over, and are 0 in examples. Per window and feature the pass yields maximum,
   minimum, sum and the counts above zero; then the window is offered to the feature's lists. A list keeps its best k
   entries per split by (score descending, uid ascending), at most one per group, in place: entries are unsorted, `worst`
   caches the score to beat. Since the order of offers does not change what is kept, tiles, batches and shards may come
   in any order.
   Features are taken 64 at a time, a bit of a mask each, and positions a few at a time: where nearly all activations
   are 0 the others are taken one by one, else a vector of features at a time. Compiled by scan.py; its Python twin there
   is the specification. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define BINS 64
#define HALF_MAX 65504.0f
#define BLOCK 64  /* features */
#define LANES 8   /* features in a vector */
#define CHUNK 4   /* positions that are looked at together */
#define FEW 32    /* activations of a chunk that are not 0, up to which they are taken one by one */
#define SPAN 252  /* positions whose bins are counted together, as a byte counts them */
#define AHEAD 8   /* positions; the next rows lie too far apart for the processor to foresee them */

typedef struct {
    float *score, *worst;
    int64_t *uid, *group;
    _Float16 *activations;
    int64_t per_feature, offsets[4];
} list;

static int better(float score, int64_t uid, float other_score, int64_t other_uid) {
    return score > other_score || (score == other_score && uid < other_uid);
}

/* A vector of features, in the extensions that gcc and clang share; by name where these give poor code. */
typedef float floats __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef float half_floats __attribute__((vector_size(LANES * 2)));
typedef double half_doubles __attribute__((vector_size(LANES * 4)));

static inline ints pick(ints mask, ints yes, ints no) { return (mask & yes) | (~mask & no); }

/* The larger and the smaller of two, the second one where the first is not a number. */
#if defined(__AVX2__)
static inline floats larger(floats a, floats b) { return (floats)_mm256_max_ps((__m256)a, (__m256)b); }

static inline floats smaller(floats a, floats b) { return (floats)_mm256_min_ps((__m256)a, (__m256)b); }
#else
static inline floats larger(floats a, floats b) { return (floats)pick(a > b, (ints)a, (ints)b); }

static inline floats smaller(floats a, floats b) { return (floats)pick(a < b, (ints)a, (ints)b); }
#endif

static inline floats load(const float *from) {
    floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* A bit for each of a block's activations that is not 0. */
static inline uint64_t nonzero(const float *row) {
    uint64_t bits = 0;
    for (int j = 0; j < BLOCK; j += LANES) {
#if defined(__AVX2__)
        __m256 differ = _mm256_cmp_ps((__m256)load(row + j), _mm256_setzero_ps(), _CMP_NEQ_UQ);
        uint64_t some = (uint32_t)_mm256_movemask_ps(differ);
#else
        uint64_t some = 0;
        for (int i = 0; i < LANES; i++) some |= (uint64_t)(row[j + i] != 0) << i;
#endif
        bits |= some << j;
    }
    return bits;
}

/* Floats within the range of halves as halves, rounded to the nearest, ties to even. */
static inline void store_halves(_Float16 *target, floats v) {
#if defined(__AVX2__) && defined(__F16C__)
    _mm_storeu_si128((__m128i *)target, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int j = 0; j < LANES; j++) target[j] = (_Float16)v[j];
#endif
}

/* One window's activations of one block in half precision, converted when the first offer wants them. */
typedef struct {
    const float *base;
    const uint8_t *counted; /* (position,) */
    int64_t row_stride, positions, width;
    int ready;
    _Float16 *halves; /* (position, BLOCK) */
} block_rows;

/* A block's row, filled up with zeros in `padded` where it is not whole. */
static inline const float *whole_row(const float *row, int64_t width, float padded[BLOCK]) {
    if (width == BLOCK) return row;
    memset(padded, 0, BLOCK * sizeof(float));
    return memcpy(padded, row, width * sizeof(float));
}

static void convert(block_rows *rows) {
    for (int64_t t = 0; t < rows->positions; t++) {
        float padded[BLOCK] = {0};
        const float *row = padded;
        if (rows->counted[t]) row = whole_row(rows->base + t * rows->row_stride, rows->width, padded);
        floats most = (floats){0} + HALF_MAX;
        for (int j = 0; j < BLOCK; j += LANES)
            store_halves(rows->halves + t * BLOCK + j, smaller(larger(load(row + j), -most), most));
    }
    rows->ready = 1;
}

/* Whether a score may enter a list; a look at one number tells of nearly all that it does not. */
static inline int may_enter(const list *l, int64_t feature, int split, float score) {
    return score >= l->worst[feature * 3 + split];
}

/* Offers a window that may enter. */
static void offer(list *l, int64_t feature, int split, float score, int64_t uid, int64_t group, block_rows *rows,
                  int64_t column) {
    float worst = l->worst[feature * 3 + split];
    int64_t first = feature * l->per_feature + l->offsets[split];
    int64_t end = feature * l->per_feature + l->offsets[split + 1], slot = -1;
    for (int64_t i = first; i < end; i++)
        if (l->group[i] == group) slot = i;
    if (slot < 0) /* else the worst entry: of the lowest score, which `worst` is, and of these the highest uid */
        for (int64_t i = first; i < end; i++)
            if (l->score[i] == worst && (slot < 0 || l->uid[i] > l->uid[slot])) slot = i;
    if (first == end || !better(score, uid, l->score[slot], l->uid[slot])) return;
    l->score[slot] = score;
    l->uid[slot] = uid;
    l->group[slot] = group;
    if (!rows->ready) convert(rows);
    _Float16 *target = l->activations + slot * rows->positions;
    for (int64_t t = 0; t < rows->positions; t++) target[t] = rows->halves[t * BLOCK + column];
    worst = l->score[first];
    for (int64_t i = first + 1; i < end; i++) worst = l->score[i] < worst ? l->score[i] : worst;
    l->worst[feature * 3 + split] = worst;
}

static float priority(uint32_t window_hash, uint32_t feature) {
    uint32_t x = window_hash ^ (feature * 0x9E3779B9u);
    x ^= x >> 16; x *= 0x7feb352du;
    x ^= x >> 15; x *= 0x846ca68bu;
    x ^= x >> 16;
    return (float)(x >> 8) * 0x1p-24f;
}

static inline int32_t bin_of(float activation) {
    int32_t bits;
    memcpy(&bits, &activation, sizeof bits);
    int32_t bin = (bits >> 22) - (127 - 16) * 2;
    return bin < 0 ? 0 : bin > BINS - 1 ? BINS - 1 : bin;
}

/* The bins of a vector of activations, -1 of those not above zero. */
static inline void store_bins(int8_t *target, floats v) {
#if defined(__AVX2__)
    __m256i bin = _mm256_sub_epi32(_mm256_srai_epi32((__m256i)v, 22), _mm256_set1_epi32((127 - 16) * 2));
    bin = _mm256_min_epi32(_mm256_max_epi32(bin, _mm256_setzero_si256()), _mm256_set1_epi32(BINS - 1));
    bin = _mm256_or_si256(bin, (__m256i)_mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_NGT_UQ));
    __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(bin), _mm256_extracti128_si256(bin, 1));
    _mm_storel_epi64((__m128i *)target, _mm_packs_epi16(narrow, narrow));
#else
    for (int j = 0; j < LANES; j++) target[j] = v[j] > 0 ? bin_of(v[j]) : -1;
#endif
}

/* The running figures of a block within one window, and the counts of many rows that are not in the histogram yet. */
typedef struct {
    float high[BLOCK], low[BLOCK];
    double total[BLOCK];
    int32_t active[BLOCK];
    uint64_t zeros; /* the features of which a 0 was passed over */
    int64_t *histogram; /* (feature, BINS) */
    int8_t bins[SPAN][BLOCK]; /* -1 where an activation is not above zero */
    int64_t rows; /* of `bins` */
    uint16_t binned[BINS][BLOCK];
    int64_t binned_rows; /* that `binned` counts */
} figures;

static void begin_window(figures *own) {
    for (int j = 0; j < BLOCK; j++) own->high[j] = -INFINITY, own->low[j] = INFINITY;
    memset(own->total, 0, sizeof own->total);
    memset(own->active, 0, sizeof own->active);
    own->zeros = 0;
}

/* Of a row that is nearly all zeros, those activations that are not. */
static inline void add_few(figures *own, const float *row, uint64_t bits) {
    own->zeros |= ~bits;
    for (; bits; bits &= bits - 1) {
        int j = __builtin_ctzll(bits);
        float v = row[j];
        own->high[j] = v > own->high[j] ? v : own->high[j];
        own->low[j] = v < own->low[j] ? v : own->low[j];
        own->total[j] += v;
        if (v > 0) {
            own->active[j]++;
            own->histogram[j * BINS + bin_of(v)]++;
        }
    }
}

/* All activations of some rows. */
static inline void add_rows(figures *own, const float *const *rows, int64_t count) {
    for (int j = 0; j < BLOCK; j += LANES) {
        floats high = load(own->high + j), low = load(own->low + j);
        half_doubles total[2];
        ints active;
        memcpy(total, own->total + j, sizeof total);
        memcpy(&active, own->active + j, sizeof active);
        for (int64_t t = 0; t < count; t++) {
            floats v = load(rows[t] + j);
            half_floats parts[2];
            memcpy(parts, &v, sizeof parts);
            high = larger(v, high);
            low = smaller(v, low);
            for (int i = 0; i < 2; i++) total[i] += __builtin_convertvector(parts[i], half_doubles);
            active -= v > 0;
            store_bins(own->bins[own->rows + t] + j, v);
        }
        memcpy(own->high + j, &high, sizeof high);
        memcpy(own->low + j, &low, sizeof low);
        memcpy(own->total + j, total, sizeof total);
        memcpy(own->active + j, &active, sizeof active);
    }
    own->rows += count;
}

static void flush(figures *own, int64_t width) {
    for (int64_t j = 0; j < width; j++)
        for (int64_t bin = 0; bin < BINS; bin++) own->histogram[j * BINS + bin] += own->binned[bin][j];
    memset(own->binned, 0, sizeof own->binned);
    own->binned_rows = 0;
}

/* Counts the rows of bins: one bin after the other, from the highest down, until few activations are left. */
static void count_bins(figures *own, int64_t width) {
    typedef int8_t wide __attribute__((vector_size(32)));
    typedef uint8_t tally __attribute__((vector_size(32)));
    if (own->binned_rows + own->rows > UINT16_MAX) flush(own, width);
    own->binned_rows += own->rows;
    int64_t left = 0;
    int bin = -1;
    for (int j = 0; j < BLOCK; j += 32) {
        wide highest = (wide){0} - 1;
        tally above = {0};
        for (int64_t t = 0; t < own->rows; t++) {
            wide row, higher;
            memcpy(&row, own->bins[t] + j, sizeof row);
            higher = row > highest;
            highest = (higher & row) | (~higher & highest);
            above -= (tally)(row >= 0);
        }
        for (int k = 0; k < 32; k++) {
            bin = highest[k] > bin ? highest[k] : bin;
            left += above[k];
        }
    }
    for (; bin >= 3 && left > own->rows; bin -= 4)
        for (int j = 0; j < BLOCK; j += 32) {
            tally seen[4] = {{0}};
            for (int64_t t = 0; t < own->rows; t++) {
                wide row;
                memcpy(&row, own->bins[t] + j, sizeof row);
                for (int i = 0; i < 4; i++) seen[i] -= (tally)(row == (int8_t)(bin - i));
            }
            for (int i = 0; i < 4; i++)
                for (int k = 0; k < 32; k++) {
                    own->binned[bin - i][j + k] += seen[i][k];
                    left -= seen[i][k];
                }
        }
    for (int64_t t = 0; left && t < own->rows; t++)
        for (int j = 0; j < BLOCK; j += 32) {
            wide row;
            memcpy(&row, own->bins[t] + j, sizeof row);
            row = (row >= 0) & (row <= (int8_t)bin) & 1;
            uint64_t low[4];
            memcpy(low, &row, sizeof low);
            for (int i = 0; i < 4; i++)
                for (; low[i]; low[i] &= low[i] - 1) {
                    int k = j + i * 8 + __builtin_ctzll(low[i]) / 8;
                    own->binned[own->bins[t][k]][k]++;
                }
        }
    own->rows = 0;
}

/* Passes over one window's activations of a block. */
static void add_window(figures *own, const block_rows *window) {
    const float *rows[CHUNK];
    float padded[CHUNK][BLOCK];
    begin_window(own);
    for (int64_t t = 0; t < window->positions;) {
        uint64_t bits[CHUNK];
        int64_t count = 0, some = 0;
        for (; t < window->positions && count < CHUNK; t++) {
            if (!window->counted[t]) continue;
            for (int j = 0; j < BLOCK; j += 16)
                __builtin_prefetch(window->base + (t + AHEAD) * window->row_stride + j);
            rows[count] = whole_row(window->base + t * window->row_stride, window->width, padded[count]);
            if (some <= FEW) some += __builtin_popcountll(bits[count] = nonzero(rows[count]));
            count++;
        }
        if (some <= FEW)
            for (int64_t i = 0; i < count; i++) add_few(own, rows[i], bits[i]);
        else add_rows(own, rows, count);
        if (own->rows > SPAN - CHUNK) count_bins(own, window->width);
    }
    for (int j = 0; j < BLOCK; j++)
        if (own->zeros >> j & 1) {
            own->high[j] = own->high[j] > 0 ? own->high[j] : 0;
            own->low[j] = own->low[j] < 0 ? own->low[j] : 0;
        }
}

/* Returns the number of window-feature pairs whose activations are not finite (0 is well), -1 without memory. */
int64_t scan(const float *tile, int64_t windows, int64_t positions, int64_t features, int64_t window_stride,
             int64_t row_stride, int64_t first_feature, const int64_t *uid, const int64_t *group,
             const uint32_t *window_hash, const int8_t *split, const uint8_t *counted, int64_t *count, int64_t *sum,
             float *peak, float *trough, int64_t *histogram, list *top, list *bottom, list *quantile) {
    int64_t broken = 0;
    _Float16 *halves = malloc(positions * BLOCK * sizeof(_Float16));
    if (!halves) return -1;
    figures own;
    memset(&own, 0, sizeof own);
    for (int64_t block = 0; block < features; block += BLOCK) {
        int64_t width = features - block < BLOCK ? features - block : BLOCK;
        own.histogram = histogram + (first_feature + block) * BINS;
        for (int64_t w = 0; w < windows; w++) {
            const float *base = tile + w * window_stride + block;
            block_rows rows = {base, counted + w * positions, row_stride, positions, width, 0, halves};
            add_window(&own, &rows);
            float chance[BLOCK];
            for (int j = 0; j < BLOCK; j++) chance[j] = priority(window_hash[w], (uint32_t)(first_feature + block + j));
            for (int64_t j = 0; j < width; j++) {
                int64_t f = first_feature + block + j;
                float high = own.high[j], low = own.low[j];
                if (!isfinite(own.total[j])) { broken++; continue; }
                count[f] += own.active[j];
                sum[f] += llrint(own.total[j] * 0x1p20);
                if (high > peak[f]) peak[f] = high;
                if (low < trough[f]) trough[f] = low;
                if (high > 0 && may_enter(top, f, split[w], high))
                    offer(top, f, split[w], high, uid[w], group[w], &rows, j);
                if (high > 0 && may_enter(quantile, f, split[w], chance[j]))
                    offer(quantile, f, split[w], chance[j], uid[w], uid[w], &rows, j);
                if (bottom && low < 0 && may_enter(bottom, f, split[w], -low))
                    offer(bottom, f, split[w], -low, uid[w], group[w], &rows, j);
            }
        }
        if (own.rows) count_bins(&own, width);
        if (own.binned_rows) flush(&own, width);
    }
    free(halves);
    return broken;
}
