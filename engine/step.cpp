// Training steps on a CPU, the whole of step() in pytorch.py for models without dropout: forward, backward,
// clipping and AdamW of every seed, in float32.
//
// A tile is a few windows, one in each lane of a vector; all that happens to it stays in the core's own cache.
// An activation is (channels, C): a vector for each channel and column, the columns being the T positions of
// each of SUBS groups of windows. Three things are done less often than in model.py, for the same result:
// - A window that a batch holds k times is computed once, with weight k.
// - LayerNorm's gain is folded into the matrix that follows, and so is the attention's scale: what a tile sees
//   are the folded weights `w`, and the gains' gradients come from theirs, once an iteration (`unfold`).
// - Attention looks at the past alone (nearly: in blocks of A positions).
// Every tile writes a gradient of its own and the tiles are added in order, so that the number of threads
// changes nothing.
//
// N, M, T, V, LAYERS and HEADS (n_embd, its MLP's width, block_size, vocab_size, n_layer, n_head) are given as
// macros by fused.py.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 7;  // lanes of a vector; most rows of a block that registers hold
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 4;
#else
constexpr int LANES = 4, ROWS = 7;
#endif
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

constexpr int SUBS = T < 18 ? (18 + T - 1) / T : 1, C = SUBS * T, D = N / HEADS;
constexpr int TILE = LANES * SUBS;  // windows

// the block size from `least` to `most` that pads n the least
constexpr int block(int n, int least, int most) {
    int best = most;
    for (int b = most; b >= least; b--)
        if ((n + b - 1) / b * b < (n + best - 1) / best * best) best = b;
    return best;
}
constexpr int A = block(T, 1, 3), COLS = block(C, 1, 3);  // divide T and C

// where the weights of a tile lie, in floats; gradients are laid out alike
struct Layer { int qkv, proj, fc, out; };
constexpr int EMB = 0, POS = V * N, LAYER0 = POS + T * N, LAYER_SIZE = 4 * N * N + 2 * M * N;
constexpr int HEAD = LAYER0 + LAYERS * LAYER_SIZE, W_SIZE = HEAD + V * N;
constexpr Layer layer(int l) {
    int at = LAYER0 + l * LAYER_SIZE;
    return {at, at + 3 * N * N, at + 4 * N * N, at + 4 * N * N + M * N};
}
constexpr int P_SIZE = V * N + T * N + LAYERS * (LAYER_SIZE + 2 * N) + N;

typedef vec Column[C];

static inline vec splat(float x) { return x - vec{}; }
static inline vec bigger(vec a, vec b) { return a > b ? a : b; }

static inline float sum(vec x) {
    typedef float half __attribute__((vector_size(2 * LANES)));
    typedef float quarter __attribute__((vector_size(LANES)));
    half a[2];
    memcpy(a, &x, sizeof a);
    half h = a[0] + a[1];
    quarter b[2];
    memcpy(b, &h, sizeof b);
    quarter q = b[0] + b[1];
    float all = 0;
    for (int i = 0; i < LANES / 4; i++) all += q[i];
    return all;
}

static inline vec vexp(vec x) {  // 2^n e^r with |r| <= ln(2) / 2
    x = bigger(x, splat(-87.0f));
    vec shifted = x * 1.44269504f + 12582912.0f;  // rounds to a whole number, which its last bits hold
    vec n = shifted - 12582912.0f;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = 1 + r * (1 + r * (0.5f + r * (1.66666667e-1f + r * (4.16666667e-2f + r * (8.33333333e-3f
            + r * (1.38888889e-3f + r * 1.98412698e-4f))))));
    ivec bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;
    vec power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

// out (O, C) = W in, with W (O, I); or W^T in, with W (I, O); ADD adds to out
template <int O, int I, bool TRANSPOSED = false, bool ADD = false>
static void matmul(Column* __restrict out, const float* __restrict w, const Column* __restrict in) {
    constexpr int R = block(O, 4, ROWS);
    for (int c = 0; c < C; c += COLS)
        for (int o = 0; o < O; o += R) {
            vec acc[R][COLS] = {};
            const float* at[R];
            for (int r = 0; r < R; r++) {  // rows past the last one are computed, and thrown away
                int row = o + r < O ? o + r : O - 1;
                at[r] = w + (TRANSPOSED ? row : row * I);
            }
            for (int i = 0; i < I; i++)
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                    for (int k = 0; k < COLS; k++)
                        acc[r][k] += at[r][TRANSPOSED ? i * O : i] * in[i][c + k];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                if (o + r < O)
#pragma GCC unroll 8
                    for (int k = 0; k < COLS; k++)
                        out[o + r][c + k] = ADD ? out[o + r][c + k] + acc[r][k] : acc[r][k];
        }
}

// out (O, I) = sum over columns and lanes of dy (O, C) x (I, C)
template <int O, int I>
static void outer(float* __restrict out, const Column* __restrict dy, const Column* __restrict x) {
    constexpr int R = block(O, 4, ROWS), K = 3;
    for (int o = 0; o < O; o += R)
        for (int i = 0; i < I; i += K) {
            vec acc[R][K] = {};
            const vec *a[R], *b[K];
            for (int r = 0; r < R; r++) a[r] = dy[o + r < O ? o + r : O - 1];
            for (int k = 0; k < K; k++) b[k] = x[i + k < I ? i + k : I - 1];
            for (int c = 0; c < C; c++)
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                    for (int k = 0; k < K; k++) acc[r][k] += a[r][c] * b[k][c];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int k = 0; k < K; k++)
                    if (o + r < O && i + k < I) out[(o + r) * I + i + k] = sum(acc[r][k]);
        }
}

// normed (N, C) of x, and 1 / its deviation (C)
static void norm(Column* __restrict normed, vec* __restrict rstd, const Column* __restrict x) {
    for (int c = 0; c < C; c += COLS)
        for (int k = c; k < c + COLS; k++) {
            vec mean{}, square{};
            for (int n = 0; n < N; n++) mean += x[n][k];
            mean /= N;
            for (int n = 0; n < N; n++) square += (x[n][k] - mean) * (x[n][k] - mean);
            vec var = square / N + 1e-5f;
            for (int i = 0; i < LANES; i++) rstd[k][i] = 1 / std::sqrt(var[i]);
            for (int n = 0; n < N; n++) normed[n][k] = (x[n][k] - mean) * rstd[k];
        }
}

// dx (N, C) (+)= what the gradient `d` of `normed` makes of x's
template <bool ADD>
static void norm_back(Column* __restrict dx, const Column* __restrict d, const Column* __restrict normed,
                      const vec* __restrict rstd) {
    for (int c = 0; c < C; c++) {
        vec mean{}, along{};
        for (int n = 0; n < N; n++) {
            mean += d[n][c];
            along += d[n][c] * normed[n][c];
        }
        mean /= N;
        along /= N;
        for (int n = 0; n < N; n++) {
            vec y = rstd[c] * (d[n][c] - mean - normed[n][c] * along);
            dx[n][c] = ADD ? dx[n][c] + y : y;
        }
    }
}

// out (T, T) = a (D, T)^T b (D, T), from column c on, in the blocks that hold the past
static void pairs(vec (*__restrict out)[T], const Column* __restrict a, const Column* __restrict b, int c) {
    for (int t = 0; t < T; t += A)
        for (int s = 0; s <= t; s += A) {
            vec acc[A][A] = {};
            for (int d = 0; d < D; d++)
#pragma GCC unroll 4
                for (int i = 0; i < A; i++)
#pragma GCC unroll 4
                    for (int j = 0; j < A; j++) acc[i][j] += a[d][c + t + i] * b[d][c + s + j];
#pragma GCC unroll 4
            for (int i = 0; i < A; i++)
#pragma GCC unroll 4
                for (int j = 0; j < A; j++) out[t + i][s + j] = acc[i][j];
        }
}

// out (D, T) = b (D, T) weight^T: of each position's past; or b weight, of its future (FUTURE)
template <bool FUTURE>
static void mix(Column* __restrict out, const vec (*__restrict weight)[T], const Column* __restrict b, int c) {
    constexpr int R = block(D, 4, ROWS);
    for (int t = 0; t < T; t += A)
        for (int d = 0; d < D; d += R) {
            vec acc[R][A] = {};
            const vec* at[R];
            for (int r = 0; r < R; r++) at[r] = b[d + r < D ? d + r : D - 1] + c;
            for (int s = FUTURE ? t : 0; s < (FUTURE ? T : t + A); s++)
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                    for (int i = 0; i < A; i++)
                        acc[r][i] += (FUTURE ? weight[s][t + i] : weight[t + i][s]) * at[r][s];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                if (d + r < D)
#pragma GCC unroll 4
                    for (int i = 0; i < A; i++) out[d + r][c + t + i] = acc[r][i];
        }
}

struct Tile {
    struct {
        Column normed1[N], qkv[3 * N], y[N], normed2[N], h[M], slope[M];
        vec rstd1[C], rstd2[C], weight[HEADS][SUBS][T][T];
    } acts[LAYERS];
    Column x[N], normed[N], p[V], wide[3 * N > M ? 3 * N : M], narrow[N];
    vec rstd[C], most[C], total[C], pair[T][T];
    int32_t token[C][LANES], target[C][LANES];
    float share[SUBS][LANES];  // of each window in the mean loss

    // Windows at `offsets`, those past the first n empty; a window's share is its count times `unit`.
    void read(const int32_t* text, const int32_t* offsets, const int32_t* counts, int n, float unit) {
        for (int i = 0; i < TILE; i++) {
            int sub = i / LANES, lane = i % LANES, offset = offsets[i < n ? i : 0];
            share[sub][lane] = i < n ? counts[i] * unit : 0;
            for (int t = 0; t < T; t++) {
                token[sub * T + t][lane] = text[offset + t];
                target[sub * T + t][lane] = text[offset + t + 1];
            }
        }
    }

    // p (V, C) = the logits of `token`
    void forward(const float* w) {
        for (int c = 0; c < C; c++)
            for (int n = 0; n < N; n++)
                for (int i = 0; i < LANES; i++)
                    x[n][c][i] = w[EMB + token[c][i] * N + n] + w[POS + c % T * N + n];
        for (int l = 0; l < LAYERS; l++) {
            auto& a = acts[l];
            Layer at = layer(l);
            norm(a.normed1, a.rstd1, x);
            matmul<3 * N, N>(a.qkv, w + at.qkv, a.normed1);
            for (int h = 0; h < HEADS; h++)
                for (int sub = 0; sub < SUBS; sub++) attend(a.qkv + h * D, a.weight[h][sub], a.y + h * D, sub * T);
            matmul<N, N, false, true>(x, w + at.proj, a.y);
            norm(a.normed2, a.rstd2, x);
            matmul<M, N>(a.h, w + at.fc, a.normed2);
            gelu(a.h, a.slope);
            matmul<N, M, false, true>(x, w + at.out, a.h);
        }
        norm(normed, rstd, x);
        matmul<V, N>(p, w + HEAD, normed);
    }

    static void attend(const Column* q, vec (*weight)[T], Column* y, int c) {
        pairs(weight, q, q + N, c);
        for (int t = 0; t < T; t++) {
            vec top = weight[t][0], all{};
            for (int s = 1; s <= t; s++) top = bigger(top, weight[t][s]);
            for (int s = 0; s <= t; s++) all += weight[t][s] = vexp(weight[t][s] - top);
            vec inverse = 1 / all;
            for (int s = 0; s <= t; s++) weight[t][s] *= inverse;
            for (int s = t + 1; s < T; s++) weight[t][s] = vec{};
        }
        mix<false>(y, weight, q + 2 * N, c);
    }

    // h -> h Phi(h), and its slope Phi(h) + h phi(h). Phi: Abramowitz and Stegun 26.2.17, to within 7.5e-8.
    static void gelu(Column* h, Column* slope) {
        for (int m = 0; m < M; m++)
            for (int c = 0; c < C; c++) {
                vec x = h[m][c], t = 1 / (1 + 0.2316419f * (x < 0 ? -x : x));
                vec phi = vexp(-0.5f * x * x) * 0.398942280f;
                vec tail = phi * t * (0.319381530f + t * (-0.356563782f + t * (1.781477937f
                           + t * (-1.821255978f + t * 1.330274429f))));
                vec cdf = x < 0 ? tail : 1 - tail;
                h[m][c] = x * cdf;
                slope[m][c] = cdf + x * phi;
            }
    }

    // p = exp(logits - most), total = its sum
    void softmax() {
        for (int c = 0; c < C; c++) {
            vec top = p[0][c], all{};
            for (int v = 1; v < V; v++) top = bigger(top, p[v][c]);
            for (int v = 0; v < V; v++) all += p[v][c] = vexp(p[v][c] - top);
            most[c] = top;
            total[c] = all;
        }
    }

    // The mean loss of each window, (TILE). After forward.
    void losses(float* out) {
        std::unique_ptr<Column[]> logits(new Column[V]);
        memcpy(logits.get(), p, sizeof p);
        softmax();
        for (int i = 0; i < TILE; i++) {
            int sub = i / LANES, lane = i % LANES;
            double all = 0;
            for (int c = sub * T; c < sub * T + T; c++)
                all += most[c][lane] + std::log(total[c][lane]) - logits[target[c][lane]][c][lane];
            out[i] = all / T;
        }
    }

    // The gradient g of the tile's share of the mean loss, laid out as w. After forward.
    void backward(const float* w, float* g) {
        softmax();
        for (int c = 0; c < C; c++) {
            vec unit;
            memcpy(&unit, share[c / T], sizeof unit);
            vec scale = unit / total[c];
            for (int v = 0; v < V; v++) p[v][c] *= scale;
            for (int i = 0; i < LANES; i++) p[target[c][i]][c][i] -= share[c / T][i];
        }
        outer<V, N>(g + HEAD, p, normed);
        matmul<N, V, true>(narrow, w + HEAD, p);
        norm_back<false>(x, narrow, normed, rstd);  // x is now its gradient
        for (int l = LAYERS - 1; l >= 0; l--) {
            auto& a = acts[l];
            Layer at = layer(l);
            outer<N, M>(g + at.out, x, a.h);
            matmul<M, N, true>(wide, w + at.out, x);
            for (int m = 0; m < M; m++)
                for (int c = 0; c < C; c++) wide[m][c] *= a.slope[m][c];
            outer<M, N>(g + at.fc, wide, a.normed2);
            matmul<N, M, true>(narrow, w + at.fc, wide);
            norm_back<true>(x, narrow, a.normed2, a.rstd2);
            outer<N, N>(g + at.proj, x, a.y);
            matmul<N, N, true>(narrow, w + at.proj, x);
            for (int h = 0; h < HEADS; h++)
                for (int sub = 0; sub < SUBS; sub++)
                    attend_back(a.qkv + h * D, a.weight[h][sub], narrow + h * D, wide + h * D, sub * T);
            outer<3 * N, N>(g + at.qkv, wide, a.normed1);
            matmul<N, 3 * N, true>(narrow, w + at.qkv, wide);
            norm_back<true>(x, narrow, a.normed1, a.rstd1);
        }
        memset(g + EMB, 0, sizeof(float) * (V + T) * N);
        for (int c = 0; c < C; c++)
            for (int n = 0; n < N; n++) {
                g[POS + c % T * N + n] += sum(x[n][c]);
                for (int i = 0; i < LANES; i++) g[EMB + token[c][i] * N + n] += x[n][c][i];
            }
    }

    // dq, dk, dv (each (D, T), N apart) from dy (D, T)
    void attend_back(const Column* q, const vec (*weight)[T], const Column* dy, Column* dq, int c) {
        mix<true>(dq + 2 * N, weight, dy, c);
        pairs(pair, dy, q + 2 * N, c);
        for (int t = 0; t < T; t++) {
            vec dot{};
            for (int s = 0; s <= t; s++) dot += weight[t][s] * pair[t][s];
            for (int s = 0; s <= t; s++) pair[t][s] = weight[t][s] * (pair[t][s] - dot);
            for (int s = t + 1; s < T; s++) pair[t][s] = vec{};
        }
        mix<false>(dq, pair, q + N, c);
        mix<true>(dq + N, pair, q, c);
    }
};

// For each matrix: out[o][i] = its weight times `by`'s gain i; the queries' rows also times the scale.
template <class F> static void each_weight(const float* p, F f) {
    const float scale = 1 / std::sqrt(float(D));
    const float *wte = p, *wpe = wte + V * N, *at = wpe + T * N, *gain_f = p + P_SIZE - N;
    for (int i = 0; i < V * N; i++) f(EMB + i, wte - p + i, 1.0f, -1);
    for (int i = 0; i < T * N; i++) f(POS + i, wpe - p + i, 1.0f, -1);
    for (int l = 0; l < LAYERS; l++) {
        Layer w = layer(l);
        int ln_1 = at - p, qkv = ln_1 + N, proj = qkv + 3 * N * N, ln_2 = proj + N * N, fc = ln_2 + N, out = fc + M * N;
        for (int i = 0; i < 3 * N * N; i++) f(w.qkv + i, qkv + i, i < N * N ? scale : 1.0f, ln_1 + i % N);
        for (int i = 0; i < N * N; i++) f(w.proj + i, proj + i, 1.0f, -1);
        for (int i = 0; i < M * N; i++) f(w.fc + i, fc + i, 1.0f, ln_2 + i % N);
        for (int i = 0; i < N * M; i++) f(w.out + i, out + i, 1.0f, -1);
        at = p + out + N * M;
    }
    for (int i = 0; i < V * N; i++) f(HEAD + i, i, 1.0f, int(gain_f - p) + i % N);
}

static void fold(const float* p, float* w) {
    each_weight(p, [&](int at, int param, float scale, int gain) {
        w[at] = p[param] * scale * (gain < 0 ? 1 : p[gain]);
    });
}

static void unfold(const float* p, const float* g, float* grad) {
    memset(grad, 0, sizeof(float) * P_SIZE);
    each_weight(p, [&](int at, int param, float scale, int gain) {
        grad[param] += g[at] * scale * (gain < 0 ? 1 : p[gain]);
        if (gain >= 0) grad[gain] += g[at] * scale * p[param];
    });
}

// All threads wait here for each other; the last one to come calls `last` first.
struct Barrier {
    const int threads;
    std::atomic<int> waiting{0}, round{0};
    template <class F> void wait(F last) {
        int now = round.load();
        if (waiting.fetch_add(1) == threads - 1) {
            last();
            waiting = 0;
            round.fetch_add(1);
        } else {
            for (int spins = 0; round.load(std::memory_order_acquire) == now; spins++)
                if (spins > 1000) std::this_thread::yield();  // the other thread may need this very core
        }
    }
};

template <class F> static void parallel(int threads, F f) {
    std::vector<std::thread> others;  // they inherit how this thread treats denormal numbers
    for (int i = 1; i < threads; i++) others.emplace_back(f, i);
    f(0);
    for (auto& thread : others) thread.join();
}

// The distinct ones among n offsets, in the order of their first places, and how often each occurs.
static int distinct(const int32_t* offsets, int n, int32_t* out, int32_t* counts, std::vector<int32_t>& slots) {
    int found = 0;
    for (int i = 0; i < n; i++) {
        int32_t& slot = slots[offsets[i]];
        if (slot < 0) {
            slot = found;
            out[found] = offsets[i];
            counts[found++] = 0;
        }
        counts[slot]++;
    }
    for (int i = 0; i < found; i++) slots[out[i]] = -1;
    return found;
}

// Forward over n windows for each seed, at i * stride of its own text, `per_seed` after the last seed's; then
// f(tile, seed, first window, windows) for each tile.
template <class F>
static void each_tile(const float* params, const int32_t* text, int per_seed, int stride, int n, int seeds,
                      int threads, void* scratch, F f) {
    int most = (n + TILE - 1) / TILE;
    Tile* tiles = (Tile*)scratch;
    float* folded = (float*)(tiles + threads);
    for (int s = 0; s < seeds; s++) fold(params + int64_t(s) * P_SIZE, folded + int64_t(s) * W_SIZE);
    std::atomic<int> next{0};
    parallel(threads, [&](int thread) {
        int32_t offsets[TILE], counts[TILE] = {};
        for (int i; (i = next++) < seeds * most;) {
            int s = i / most, first = i % most * TILE, left = n - first < TILE ? n - first : TILE;
            for (int k = 0; k < left; k++) offsets[k] = (first + k) * stride;
            tiles[thread].read(text + int64_t(s) * per_seed, offsets, counts, left, 0);
            tiles[thread].forward(folded + int64_t(s) * W_SIZE);
            f(tiles[thread], s, first, left);
        }
    });
}

struct Adam { float lr, bias1, bias2, beta1, beta2, clip; };

// One AdamW update of a seed by its gradient.
static void adamw(float* p, float* m, float* v, const float* grad, const float* decay, Adam a) {
    double square = 0;
    for (int i = 0; i < P_SIZE; i++) square += double(grad[i]) * grad[i];
    float norm = std::sqrt(square), scale = a.clip > 0 ? std::fmin(a.clip / (norm + 1e-6f), 1.0f) : 1.0f;
    for (int i = 0; i < P_SIZE; i++) {
        float g = grad[i] * scale;
        m[i] += (1 - a.beta1) * (g - m[i]);
        v[i] += (1 - a.beta2) * (g * g - v[i]);
        p[i] = p[i] * (1 - a.lr * decay[i]) - a.lr / a.bias1 * m[i] / (std::sqrt(v[i]) / a.bias2 + 1e-8f);
    }
}

extern "C" {

// Bytes of the scratch memory that the functions below want.
int64_t scratch_size(int seeds, int windows, int threads) {
    int64_t tiles = (windows + TILE - 1) / TILE;
    return threads * sizeof(Tile) + sizeof(float) * seeds * (1 + tiles) * W_SIZE;
}

// `iterations` updates, in place, of params, exp_avg and exp_avg_sq (seeds, P).
// batches (iterations, seeds, batch) are offsets in `text`; rates (iterations, 3) hold learning rate and bias
// corrections; decay (P).
void train(float* params, float* exp_avg, float* exp_avg_sq, const int32_t* text, int length,
           const int32_t* batches, const float* rates, const float* decay, int seeds, int batch, float beta1,
           float beta2, float clip, int iterations, int threads, void* scratch) {
    int most = (batch + TILE - 1) / TILE;
    Tile* tiles = (Tile*)scratch;
    float *folded = (float*)(tiles + threads), *grads = folded + int64_t(seeds) * W_SIZE;
    const int64_t windows = int64_t(seeds) * batch;
    std::vector<int32_t> offsets(windows), counts(windows), found(seeds);
    std::atomic<int> next_seed{0}, next_tile{0};
    Barrier barrier{threads};
    parallel(threads, [&](int thread) {
        Tile& tile = tiles[thread];
        std::vector<int32_t> slots(length, -1);
        std::vector<float> grad(P_SIZE);
        for (int now = 0; now <= iterations; now++) {
            for (int s; (s = next_seed++) < seeds;) {
                float* p = params + int64_t(s) * P_SIZE;
                if (now > 0) {  // the gradient of the iteration before is there
                    float* g = grads + int64_t(s) * most * W_SIZE;
                    for (int k = 1; k * TILE < found[s]; k++)
                        for (int i = 0; i < W_SIZE; i++) g[i] += g[int64_t(k) * W_SIZE + i];
                    unfold(p, g, grad.data());
                    const float* rate = rates + 3 * (now - 1);
                    adamw(p, exp_avg + int64_t(s) * P_SIZE, exp_avg_sq + int64_t(s) * P_SIZE, grad.data(), decay,
                          {rate[0], rate[1], rate[2], beta1, beta2, clip});
                }
                if (now == iterations) continue;
                fold(p, folded + int64_t(s) * W_SIZE);
                int64_t at = int64_t(s) * batch;
                found[s] = distinct(batches + (int64_t(now) * seeds + s) * batch, batch, &offsets[at],
                                    &counts[at], slots);
            }
            barrier.wait([&] { next_tile = 0; });
            if (now == iterations) break;
            for (int i; (i = next_tile++) < seeds * most;) {
                int s = i / most, k = i % most, n = found[s] - k * TILE;
                if (n <= 0) continue;
                int64_t at = int64_t(s) * batch + k * TILE;
                const float* w = folded + int64_t(s) * W_SIZE;
                tile.read(text, &offsets[at], &counts[at], n, 1 / (float(batch) * T));
                tile.forward(w);
                tile.backward(w, grads + int64_t(i) * W_SIZE);
            }
            barrier.wait([&] { next_seed = 0; });
        }
    });
}

// The mean loss (seeds, n) of each window of `text` at offsets 0, stride .. (n - 1) * stride.
void losses(const float* params, const int32_t* text, int stride, int n, int seeds, int threads, void* scratch,
            float* out) {
    each_tile(params, text, 0, stride, n, seeds, threads, scratch, [&](Tile& tile, int s, int first, int left) {
        float loss[TILE];
        tile.losses(loss);
        memcpy(out + int64_t(s) * n + first, loss, sizeof(float) * left);
    });
}

// The logits (seeds, n, V) at position last (seeds, n) of n texts a seed, `tokens` (seeds, n, T) and one more.
void logits(const float* params, const int32_t* tokens, const int64_t* last, int n, int seeds, int threads,
            void* scratch, float* out) {
    each_tile(params, tokens, n * T, T, n, seeds, threads, scratch, [&](Tile& tile, int s, int first, int left) {
        for (int k = 0; k < left; k++) {
            int64_t row = int64_t(s) * n + first + k;
            for (int v = 0; v < V; v++) out[row * V + v] = tile.p[v][k / LANES * T + last[row]][k % LANES];
        }
    });
}

}
