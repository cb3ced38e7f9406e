/* One pass over a tile of activations: statistics and example lists of every feature in it.

   A tile is windows x positions x features, features contiguous. Positions that do not count (padding, special
   tokens, massive ones) are passed over, and are 0 in examples. Per window and feature the pass yields maximum,
   minimum, sum and the counts above zero; then the window is offered to the feature's lists. A list keeps its best k
   entries per split by (score descending, uid ascending), at most one per group, in place: entries are unsorted, `worst`
   caches the score to beat, by split and feature. Since the order of offers does not change what is kept, tiles, batches
   and shards may come in any order.
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
    int64_t features, per_feature, offsets[4];
} list;

static int better(float score, int64_t uid, float other_score, int64_t other_uid) {
    return score > other_score || (score == other_score && uid < other_uid);
}

/* A vector of features, in the extensions that gcc and clang share; by name where these give poor code. */
typedef float floats __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef float half_floats __attribute__((vector_size(LANES * 2)));
typedef double half_doubles __attribute__((vector_size(LANES * 4)));
typedef int64_t half_longs __attribute__((vector_size(LANES * 4)));

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

static inline void store(float *target, floats v) { memcpy(target, &v, sizeof v); }

static inline half_doubles load_doubles(const double *from) {
    half_doubles v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void store_doubles(double *target, half_doubles v) { memcpy(target, &v, sizeof v); }

/* Adds a vector to sums in two halves. */
static inline void add_doubles(half_doubles total[2], floats v) {
#if defined(__AVX2__)
    total[0] += (half_doubles)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
    total[1] += (half_doubles)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#else
    half_floats parts[2];
    memcpy(parts, &v, sizeof parts);
    for (int i = 0; i < 2; i++) total[i] += __builtin_convertvector(parts[i], half_doubles);
#endif
}

/* A bit for each lane of a comparison. */
static inline uint64_t bits_of(ints lanes) {
#if defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps((__m256)lanes);
#else
    uint64_t bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (uint64_t)(lanes[i] != 0) << i;
    return bits;
#endif
}

/* A bit for each of a block's activations that is not 0. */
static inline uint64_t nonzero(const float *row) {
    uint64_t bits = 0;
#if defined(__AVX2__)
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int j = 0; j < BLOCK; j += 4 * LANES) {
        __m256i differ[4];
        for (int i = 0; i < 4; i++)
            differ[i] = (__m256i)_mm256_cmp_ps((__m256)load(row + j + i * LANES), _mm256_setzero_ps(), _CMP_NEQ_UQ);
        __m256i halves[2] = {_mm256_packs_epi32(differ[0], differ[1]), _mm256_packs_epi32(differ[2], differ[3])};
        __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(halves[0], halves[1]), order);
        bits |= (uint64_t)(uint32_t)_mm256_movemask_epi8(bytes) << j;
    }
#else
    for (int j = 0; j < BLOCK; j += LANES) bits |= bits_of(load(row + j) != 0) << j;
#endif
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

/* A window that is offered to a feature's list. */
typedef struct {
    list *to;
    int64_t feature, uid, group, slot;
    float score;
    int column; /* of the block */
} candidate;

/* Features, a bit each of a block, whose scores may enter a list, and of these those whose activations say so. */
static inline uint64_t may_enter(const float *worst, const float *scores, const float *above_zero) {
    uint64_t bits = 0;
    for (int j = 0; j < BLOCK; j += LANES)
        bits |= bits_of((load(scores + j) >= load(worst + j)) & (load(above_zero + j) > 0)) << j;
    return bits;
}

static inline void prefetch(const void *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at);
}

/* Adds those of a window's block that may enter a list to the candidates, and returns how many these are then. */
static int64_t choose(list *l, int split, int64_t feature, int64_t width, const float *scores, const float *above_zero,
                      int64_t uid, int64_t group, candidate *chosen, int64_t count) {
    int64_t size = l->offsets[split + 1] - l->offsets[split];
    float padded[BLOCK];
    uint64_t bits = may_enter(whole_row(l->worst + split * l->features + feature, width, padded), scores, above_zero);
    for (bits = size ? bits : 0; bits; bits &= bits - 1) {
        int j = __builtin_ctzll(bits);
        int64_t first = (feature + j) * l->per_feature + l->offsets[split];
        prefetch(l->group + first, size * sizeof *l->group);
        prefetch(l->score + first, size * sizeof *l->score);
        prefetch(l->uid + first, size * sizeof *l->uid);
        chosen[count++] = (candidate){l, feature + j, uid, group, first, scores[j], j};
    }
    return count;
}

/* Puts a candidate into its list, but for its activations, whose `slot` is -1 where it did not enter. */
static void enter(candidate *own, int split, int64_t positions) {
    list *l = own->to;
    float *least = l->worst + split * l->features + own->feature;
    int64_t first = own->slot, end = first + l->offsets[split + 1] - l->offsets[split], slot = -1;
    for (int64_t i = first; i < end; i++)
        if (l->group[i] == own->group) slot = i;
    if (slot < 0) /* else the worst entry: of the lowest score, which `least` is, and of these the highest uid */
        for (int64_t i = first; i < end; i++)
            if (l->score[i] == *least && (slot < 0 || l->uid[i] > l->uid[slot])) slot = i;
    own->slot = -1;
    if (!better(own->score, own->uid, l->score[slot], l->uid[slot])) return;
    own->slot = slot;
    l->score[slot] = own->score;
    l->uid[slot] = own->uid;
    l->group[slot] = own->group;
    float worst = l->score[first];
    for (int64_t i = first + 1; i < end; i++) worst = l->score[i] < worst ? l->score[i] : worst;
    *least = worst;
    prefetch(l->activations + slot * positions, positions * sizeof *l->activations);
}

/* Offers a window to lists. */
static void offer(candidate *chosen, int64_t count, int split, block_rows *rows) {
    for (int64_t i = 0; i < count; i++) enter(chosen + i, split, rows->positions);
    for (int64_t i = 0; i < count; i++) {
        if (chosen[i].slot < 0) continue;
        if (!rows->ready) convert(rows);
        _Float16 *target = chosen[i].to->activations + chosen[i].slot * rows->positions;
        for (int64_t t = 0; t < rows->positions; t++) target[t] = rows->halves[t * BLOCK + chosen[i].column];
    }
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

/* The bins of two vectors of activations, -1 of those not above zero. */
static inline void store_bins(int8_t *target, const floats v[2]) {
#if defined(__AVX2__)
    __m256i exponents[2], not_above[2];
    for (int i = 0; i < 2; i++) {
        exponents[i] = _mm256_srai_epi32((__m256i)v[i], 22);
        not_above[i] = (__m256i)_mm256_cmp_ps((__m256)v[i], _mm256_setzero_ps(), _CMP_NGT_UQ);
    }
    __m256i bin = _mm256_packs_epi32(exponents[0], exponents[1]);
    bin = _mm256_sub_epi16(bin, _mm256_set1_epi16((127 - 16) * 2));
    bin = _mm256_min_epi16(_mm256_max_epi16(bin, _mm256_setzero_si256()), _mm256_set1_epi16(BINS - 1));
    bin = _mm256_or_si256(bin, _mm256_packs_epi32(not_above[0], not_above[1]));
    bin = _mm256_permute4x64_epi64(bin, 0xD8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(bin), _mm256_extracti128_si256(bin, 1));
    _mm_storeu_si128((__m128i *)target, bytes);
#else
    for (int j = 0; j < 2 * LANES; j++) target[j] = v[j / LANES][j % LANES] > 0 ? bin_of(v[j / LANES][j % LANES]) : -1;
#endif
}

/* The running figures of a block within one window, and the counts of all its windows. */
typedef struct {
    float high[BLOCK], low[BLOCK];
    double total[BLOCK];
    uint64_t zeros; /* the features of which a 0 was passed over */
    int64_t active[BLOCK], *histogram; /* (feature, BINS), which lacks what `bins` and `binned` hold, as `active` does */
    int8_t bins[SPAN][BLOCK]; /* -1 where an activation is not above zero */
    int64_t rows; /* of `bins` */
    uint16_t binned[BINS][BLOCK];
    int64_t binned_rows; /* that `binned` counts */
} figures;

static void begin_window(figures *own) {
    for (int j = 0; j < BLOCK; j++) own->high[j] = -INFINITY, own->low[j] = INFINITY;
    memset(own->total, 0, sizeof own->total);
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
    for (int j = 0; j < BLOCK; j += 2 * LANES) {
        floats high[2], low[2];
        half_doubles total[4];
        for (int i = 0; i < 2; i++) high[i] = load(own->high + j + i * LANES), low[i] = load(own->low + j + i * LANES);
        for (int i = 0; i < 4; i++) total[i] = load_doubles(own->total + j + i * LANES / 2);
        for (int64_t t = 0; t < count; t++) {
            floats v[2];
            for (int i = 0; i < 2; i++) {
                v[i] = load(rows[t] + j + i * LANES);
                high[i] = larger(v[i], high[i]);
                low[i] = smaller(v[i], low[i]);
                add_doubles(total + 2 * i, v[i]);
            }
            store_bins(own->bins[own->rows + t] + j, v);
        }
        for (int i = 0; i < 2; i++) store(own->high + j + i * LANES, high[i]), store(own->low + j + i * LANES, low[i]);
        for (int i = 0; i < 4; i++) store_doubles(own->total + j + i * LANES / 2, total[i]);
    }
    own->rows += count;
}

static void flush(figures *own, int64_t width) {
    for (int64_t bin = 0; bin < BINS; bin++) {
        uint16_t some = 0;
        for (int j = 0; j < BLOCK; j++) some |= own->binned[bin][j];
        for (int64_t j = 0; some && j < width; j++) own->histogram[j * BINS + bin] += own->binned[bin][j];
    }
    memset(own->binned, 0, sizeof own->binned);
    own->binned_rows = 0;
}

typedef int8_t wide __attribute__((vector_size(32)));
typedef uint8_t tally __attribute__((vector_size(32)));

static inline uint32_t bits_of_bytes(wide bytes) {
#if defined(__AVX2__)
    return (uint32_t)_mm256_movemask_epi8((__m256i)bytes);
#else
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++) bits |= (uint32_t)(bytes[i] != 0) << i;
    return bits;
#endif
}

/* Counts the rows of bins: one bin after the other, from the highest down, until few activations are left. */
static void count_bins(figures *own, int64_t width) {
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
            own->active[j + k] += above[k];
        }
    }
    for (; bin >= 3 && left > own->rows / 4; bin -= 4)
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
            for (uint32_t low = bits_of_bytes((row >= 0) & (row <= (int8_t)bin)); low; low &= low - 1, left--) {
                int k = j + __builtin_ctz(low);
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

/* Adds a window's figures of a block to those of its features; returns of how many features they are not finite. */
static int64_t add_figures(const figures *own, int64_t width, int64_t *sum, float *peak, float *trough) {
    const double unit = 0x1p20, most = 0x1p51, whole = 0x1.8p52; /* at which the last bit of a double is 1 */
    half_longs inside = {0};
    inside -= 1;
    for (int j = 0; j < BLOCK; j += LANES / 2) {
        half_doubles total = load_doubles(own->total + j) * unit;
        inside &= (total < most) & (total > -most);
    }
    int64_t plain = width == BLOCK, broken = 0;
    for (int i = 0; i < LANES / 2; i++) plain &= inside[i];
    for (int j = 0; plain && j < BLOCK; j += LANES / 2) {
        half_doubles total = load_doubles(own->total + j) * unit + whole;
        half_longs units, zero = (half_longs)((half_doubles){0} + whole);
        memcpy(&units, sum + j, sizeof units);
        units += (half_longs)total - zero;
        memcpy(sum + j, &units, sizeof units);
    }
    for (int j = 0; plain && j < BLOCK; j += LANES) {
        store(peak + j, larger(load(own->high + j), load(peak + j)));
        store(trough + j, smaller(load(own->low + j), load(trough + j)));
    }
    for (int j = 0; !plain && j < width; j++) {
        if (!isfinite(own->total[j])) { broken++; continue; }
        sum[j] += llrint(own->total[j] * unit);
        peak[j] = own->high[j] > peak[j] ? own->high[j] : peak[j];
        trough[j] = own->low[j] < trough[j] ? own->low[j] : trough[j];
    }
    return broken;
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
            int64_t first = first_feature + block, found = 0;
            broken += add_figures(&own, width, sum + first, peak + first, trough + first);
            if (broken) continue;
            float chance[BLOCK], negative[BLOCK];
            for (int j = 0; j < BLOCK; j++) chance[j] = priority(window_hash[w], (uint32_t)(first + j));
            candidate chosen[3 * BLOCK];
            found = choose(top, split[w], first, width, own.high, own.high, uid[w], group[w], chosen, found);
            found = choose(quantile, split[w], first, width, chance, own.high, uid[w], uid[w], chosen, found);
            if (bottom) {
                for (int j = 0; j < BLOCK; j++) negative[j] = -own.low[j];
                found = choose(bottom, split[w], first, width, negative, negative, uid[w], group[w], chosen, found);
            }
            offer(chosen, found, split[w], &rows);
        }
        if (own.rows) count_bins(&own, width);
        if (own.binned_rows) flush(&own, width);
        for (int j = 0; j < width; j++) count[first_feature + block + j] += own.active[j];
        memset(own.active, 0, sizeof own.active);
    }
    free(halves);
    return broken;
}
