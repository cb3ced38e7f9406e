/* One pass over a tile of activations: statistics and example lists of every feature in it.

   A tile is windows x positions x features, features contiguous. Positions that do not count (padding, special
   tokens, massive ones) are passed over, and are 0 in examples. Per window and feature the pass yields maximum,
   minimum, sum and the counts above zero; then the window is offered to the feature's lists. A list keeps its best k entries per split by (score descending, uid ascending),
   at most one per group, in place: entries are unsorted, `worst` caches the score to beat. Since
   the order of offers does not change what is kept, tiles, batches and shards may come in any order.
   Sixteen features are a vector, four vectors a block, whose figures stay in registers while its window is passed
   over. Compiled by scan.py; its Python twin there is the specification. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#endif

#define BINS 64
#define HALF_MAX 65504.0f
#define LANES 16
#define GROUPS 4
#define BLOCK (LANES * GROUPS)

typedef struct {
    float *score, *worst;
    int64_t *uid, *group;
    _Float16 *activations;
    int64_t per_feature, offsets[4];
} list;

static int better(float score, int64_t uid, float other_score, int64_t other_uid) {
    return score > other_score || (score == other_score && uid < other_uid);
}

/* Sixteen lanes at once, in the vector extensions that gcc and clang share; by name where these give poor code. */
typedef float floats __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef float half_floats __attribute__((vector_size(LANES * 2)));
typedef double half_doubles __attribute__((vector_size(LANES * 4)));

static inline ints pick(ints mask, ints yes, ints no) { return (mask & yes) | (~mask & no); }

#if defined(__AVX512F__)
static inline floats larger(floats a, floats b) { return (floats)_mm512_max_ps((__m512)a, (__m512)b); }

static inline floats smaller(floats a, floats b) { return (floats)_mm512_min_ps((__m512)a, (__m512)b); }

static inline uint32_t above_zero(floats v) {
    return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_GT_OQ);
}
#else
static inline floats larger(floats a, floats b) { return (floats)pick(a > b, (ints)a, (ints)b); }

static inline floats smaller(floats a, floats b) { return (floats)pick(a < b, (ints)a, (ints)b); }

static inline uint32_t above_zero(floats v) {
#if defined(__AVX2__) && defined(__F16C__)
    __m256 parts[2], zero = _mm256_setzero_ps();
    memcpy(parts, &v, sizeof parts);
    uint32_t low = _mm256_movemask_ps(_mm256_cmp_ps(parts[0], zero, _CMP_GT_OQ));
    return low | (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(parts[1], zero, _CMP_GT_OQ)) << 8;
#else
    uint32_t bits = 0;
    for (int j = 0; j < LANES; j++) bits |= (uint32_t)(v[j] > 0) << j;
    return bits;
#endif
}
#endif

/* Sixteen floats within the range of halves as halves, rounded to the nearest, ties to even. */
static inline void store_halves(_Float16 *target, floats v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)target, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__) && defined(__F16C__)
    __m256 parts[2];
    memcpy(parts, &v, sizeof parts);
    for (int i = 0; i < 2; i++)
        _mm_storeu_si128((__m128i *)target + i, _mm256_cvtps_ph(parts[i], _MM_FROUND_TO_NEAREST_INT));
#else
    for (int j = 0; j < LANES; j++) target[j] = (_Float16)v[j];
#endif
}

/* A block's row of floats, of which `width` are there; the others are 0. */
static inline void load_row(const float *row, int64_t width, floats v[GROUPS]) {
    if (width == BLOCK) memcpy(v, row, BLOCK * sizeof(float));
    else {
        memset(v, 0, BLOCK * sizeof(float));
        memcpy(v, row, width * sizeof(float));
    }
}

/* One window's activations of one block in half precision, converted when the first offer wants them. */
typedef struct {
    const float *base;
    const uint8_t *counted; /* (position,) */
    int64_t row_stride, positions, width;
    int ready;
    _Float16 *halves; /* (position, BLOCK) */
} block_rows;

static void convert(block_rows *rows) {
    for (int64_t t = 0; t < rows->positions; t++) {
        floats v[GROUPS] = {0}, most = (floats){0} + HALF_MAX;
        if (rows->counted[t]) load_row(rows->base + t * rows->row_stride, rows->width, v);
        for (int g = 0; g < GROUPS; g++)
            store_halves(rows->halves + t * BLOCK + g * LANES, smaller(larger(v[g], -most), most));
    }
    rows->ready = 1;
}

static void offer(list *l, int64_t feature, int split, float score, int64_t uid, int64_t group, block_rows *rows,
                  int64_t column) {
    float worst = l->worst[feature * 3 + split];
    if (score < worst) return;
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

/* The running figures of sixteen features within one window. */
typedef struct {
    floats high, low;
    half_doubles total[2];
    ints active;
} figures;

static inline void add_row(floats v, figures *seen) {
    half_floats parts[2];
    memcpy(parts, &v, sizeof parts);
    seen->high = larger(v, seen->high);
    seen->low = smaller(v, seen->low);
    for (int i = 0; i < 2; i++) seen->total[i] += __builtin_convertvector(parts[i], half_doubles);
    seen->active -= v > 0;
}

/* Counts of a block's features in 16 bits; bin BINS takes what is not above zero, so that counting many needs no
   branch. */
typedef uint16_t counts[BLOCK][BINS + 2];

static inline int32_t bin_of(int32_t bits) {
    int32_t bin = (bits >> 22) - (127 - 16) * 2;
    return bin < 0 ? 0 : bin > BINS - 1 ? BINS - 1 : bin;
}

static inline void count_row(const float *row, const floats v[GROUPS], counts binned) {
    uint64_t bits = 0;
    for (int g = 0; g < GROUPS; g++) bits |= (uint64_t)above_zero(v[g]) << (g * LANES);
    if (__builtin_popcountll(bits) < BLOCK / 4) {
        for (; bits; bits &= bits - 1) {
            int j = __builtin_ctzll(bits);
            int32_t raw;
            memcpy(&raw, row + j, sizeof raw);
            binned[j][bin_of(raw)]++;
        }
        return;
    }
    for (int g = 0; g < GROUPS; g++) {
        ints bin = ((ints)v[g] >> 22) - (127 - 16) * 2;
        bin = pick(bin < 0, (ints){0}, bin);
        bin = pick(bin > BINS - 1, (ints){0} + (BINS - 1), bin);
        bin = pick(v[g] > 0, bin, (ints){0} + BINS);
        int32_t bins[LANES];
        memcpy(bins, &bin, sizeof bins);
        for (int j = 0; j < LANES; j++) binned[g * LANES + j][bins[j]]++;
    }
}

static void flush(counts binned, int64_t width, int64_t *histogram) {
    for (int64_t j = 0; j < width; j++)
        for (int64_t bin = 0; bin < BINS; bin++) histogram[j * BINS + bin] += binned[j][bin];
    memset(binned, 0, sizeof(counts));
}

/* Returns the number of window-feature pairs whose activations are not finite (0 is well), -1 without memory. */
int64_t scan(const float *tile, int64_t windows, int64_t positions, int64_t features, int64_t window_stride,
             int64_t row_stride, int64_t first_feature, const int64_t *uid, const int64_t *group,
             const uint32_t *window_hash, const int8_t *split, const uint8_t *counted, int64_t *count, int64_t *sum,
             float *peak, float *trough, int64_t *histogram, list *top, list *bottom, list *quantile) {
    int64_t broken = 0;
    _Float16 *halves = malloc(positions * BLOCK * sizeof(_Float16));
    if (!halves) return -1;
    for (int64_t block = 0; block < features; block += BLOCK) {
        int64_t width = features - block < BLOCK ? features - block : BLOCK, binned_rows = 0;
        int64_t *block_histogram = histogram + (first_feature + block) * BINS;
        counts binned;
        memset(binned, 0, sizeof binned);
        for (int64_t w = 0; w < windows; w++) {
            const float *base = tile + w * window_stride + block;
            block_rows rows = {base, counted + w * positions, row_stride, positions, width, 0, halves};
            figures seen[GROUPS];
            for (int g = 0; g < GROUPS; g++)
                seen[g] = (figures){(floats){0} - INFINITY, (floats){0} + INFINITY, {{0}, {0}}, {0}};
            if ((binned_rows += positions) > UINT16_MAX) {
                flush(binned, width, block_histogram);
                binned_rows = positions;
            }
            for (int64_t t = 0; t < positions; t++) {
                if (!rows.counted[t]) continue;
                floats v[GROUPS];
                load_row(base + t * row_stride, width, v);
                for (int g = 0; g < GROUPS; g++) add_row(v[g], &seen[g]);
                count_row(base + t * row_stride, v, binned);
            }
            for (int64_t j = 0; j < width; j++) {
                int64_t f = first_feature + block + j;
                const figures *own = &seen[j / LANES];
                float high = own->high[j % LANES], low = own->low[j % LANES];
                double total = own->total[j % LANES / (LANES / 2)][j % (LANES / 2)];
                if (!isfinite(total)) { broken++; continue; }
                count[f] += own->active[j % LANES];
                sum[f] += llrint(total * 0x1p20);
                if (high > peak[f]) peak[f] = high;
                if (low < trough[f]) trough[f] = low;
                if (high > 0) {
                    offer(top, f, split[w], high, uid[w], group[w], &rows, j);
                    offer(quantile, f, split[w], priority(window_hash[w], (uint32_t)f), uid[w], uid[w], &rows, j);
                }
                if (bottom && low < 0)
                    offer(bottom, f, split[w], -low, uid[w], group[w], &rows, j);
            }
        }
        flush(binned, width, block_histogram);
    }
    free(halves);
    return broken;
}
