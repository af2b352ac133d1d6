/*
 * check_adapter.c - adapter.c: its mathematics against the adapters library and against central
 * differences, its files by name and shape, and the program as people run it, on the built-in
 * model.
 *
 * The witnesses: golden_adapter.h, made by the adapters library; central differences, also under
 * dropout; and the promises that need no second opinion: an untrained adapter changes no bit,
 * gradient checkpointing changes no bit, nor do threads or a resume. The program under test is
 * $BUILD/adapter.
 */
#define main program_main  // this file has its own
#include "../../adapter.c"
#undef main

#include <omp.h>
#include "program.h"
#include "files/safetensors.h"

#include "../golden/golden_adapter.h"
#include "../golden/golden_gpt2.h"

#undef fail
#include <check.h>

#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))

static char work[64] = "/tmp/check_adapter.XXXXXX";  // where the runs write
/* ---- models ---------------------------------------------------------------------------------- */

static const GPT2Config tiny = {.n_positions = 32,
                                .vocab_size = 61,
                                .n_layer = 2,
                                .n_head = 3,
                                .n_embd = 24,
                                .n_inner = 96,
                                .layer_norm_epsilon = 1e-5f};
enum { N = 20, S = 3 };  // golden_gpt2.h's batch

/* Element i of tensor t: WEIGHTS in golden_gpt2.h. */
static float golden_weight(uint32_t t, uint32_t i, bool gain) {
    uint32_t h = t * 1000003u + i * 7919u + 12345u;
    h ^= h >> 16;
    h *= 0x7feb352du;
    h ^= h >> 15;
    h *= 0x846ca68bu;
    h ^= h >> 16;
    double v = (h / 4294967296.0 - 0.5) * 0.4;
    return (float)(gain ? 1.0 + v : v);
}

/* Gives the flags the program's defaults. */
static void set_defaults(void) {
    Run run = {0};
    Error e;
    char *argv[] = {"adapter", "--model=m", NULL};
    if (run_parse(&run, &program, 2, argv, &e)) die("%s", e.text);
    run_free(&run);
}

static const char *const library_names[] = {"relu", "gelu_new", "swish"};

/* The activation that the library calls so. */
static unsigned activation_of(const char *name) {
    return !strcmp(name, "relu") ? RELU : !strcmp(name, "swish") ? SILU : GELU;
}

static void plan_form(bool houlsby, const char *activation, int dim, bool norms, float dropout_p) {
    set_defaults();
    args.form = (Bottleneck){.name = "adapter",
                             .dim = dim,
                             .placement = houlsby ? HOULSBY : PFEIFFER,
                             .activation = activation_of(activation),
                             .dropout = dropout_p,
                             .norms = norms};
    adapter_plan(&tiny);
}

/* The golden base with the planned adapters, whose weights are golden, or, start, those of a run
 * that begins. */
static GPT2 *make(bool start, bool train, bool checkpointing) {
    GPT2 *m = gpt2_create(&tiny, false);
    GPT2Limits limits = {.tokens = N,
                         .sequences = S,
                         .scored = N,
                         .train = train,
                         .gradient_checkpointing = checkpointing,
                         .slots = 2,
                         .positions = 32};
    technique_limits(&technique, &limits);
    gpt2_reserve(m, &limits);
    technique_reserve(&technique, &limits, &tiny);
    for (int i = 0; i < gpt2_tensors(m); i++) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        const bool own = i < gpt2_own_tensors(m),
                   gain = own && strstr(t->name, "ln_") && strstr(t->name, ".weight");
        float *w = (float *)xmalloc(sizeof *w * t->n);
        for (size_t j = 0; j < t->n; j++)
            w[j] = golden_weight((uint32_t)(own ? i : 1000 + i - gpt2_own_tensors(m)), (uint32_t)j,
                                 gain);
        if (own || !start) gpt2_write(m, i, GPT2_WEIGHT, 0, t->n, w);
        free(w);
    }
    if (start) adapter_init(m, 5);
    return m;
}

static void discard(GPT2 *m) {
    gpt2_free(m);
    added_free(&added);
}

static int starts[S + 1], tokens[N], target[N];
static float dlogp[N];

static const Batch *golden_batch(void) {
    static Batch b = {.S = S, .N = N, .start = starts, .tokens = tokens};
    for (int s = 0; s < S; s++) {
        starts[s + 1] = starts[s] + golden_length[s];
        for (int p = 0; p < golden_length[s]; p++)
            tokens[starts[s] + p] = (5 * p * p + 3 * p + 11 * s + 2) % 61;
        for (int p = 0; p < golden_length[s]; p++) {
            const bool scored = p >= golden_first_scored[s] && p + 1 < golden_length[s];
            target[starts[s] + p] = scored ? tokens[starts[s] + p + 1] : -1;
            dlogp[starts[s] + p] = scored ? -1.0f / LENGTH(golden_logp) : 0;
        }
    }
    return &b;
}

static double loss_of(GPT2 *m, const GPT2Noise *noise, float *logp) {
    double sum = 0;
    gpt2_forward(m, golden_batch(), noise);
    gpt2_logprob(m, target, 1, logp, NULL, NULL);
    for (int i = 0; i < N; i++) sum -= (double)logp[i] / LENGTH(golden_logp);
    return sum;
}

static float *tensor_part(const GPT2 *m, int i, GPT2Part part) {
    float *x = (float *)xmalloc(sizeof *x * gpt2_tensor(m, i)->n);
    gpt2_read(m, i, part, 0, gpt2_tensor(m, i)->n, x);
    return x;
}

/* ---- mathematics ----------------------------------------------------------------------------- */

START_TEST(the_loss_is_the_mean_over_all_scored_tokens) {
    const int to[] = {-1, 7, 0};
    const float logp[] = {-9, -1, -2};
    float d[3];
    ck_assert_double_eq_tol(cross_entropy(3, to, logp, 4, d), 0.75, 1e-12);  // (1 + 2) / 4
    ck_assert(d[0] == 0 && d[1] == -0.25f && d[2] == -0.25f);
}
END_TEST

/* PyTorch's float32 is off by f32_l2 in the L2 norm. Ten times as much is allowed here, plus the
   rounding of the numbers: its gradients are sums of the same terms in another order. */
START_TEST(it_computes_what_the_adapters_library_computes) {
    for (int g = 0; g < LENGTH(golden_adapter); g++)
        for (int norms = 0; norms < 2; norms++) {
            const GoldenAdapter *want = &golden_adapter[g];
            float logp[N];
            plan_form(!strcmp(want->placement, "double_seq_bn"), want->activation, 6, norms, 0);
            GPT2 *m = make(false, true, false);
            ck_assert_int_eq(added.n + 10, want->gradients);
            loss_of(m, NULL, logp);
            for (int i = 0, k = 0; i < N; i++)
                if (target[i] >= 0)
                    ck_assert_double_eq_tol((double)logp[i], want->logp[k++],
                                            2.4e-6);  // float32 strays by up to 4.1e-7
            gpt2_backward(m, dlogp, NULL, NULL);
            for (int k = 0; k < added.n + (norms ? 10 : 0); k++) {
                const GoldenGradient *x = &want->gradient[k];
                int i = k < added.n ? gpt2_own_tensors(m) + k : 0;
                while (k >= added.n &&
                       strcmp(gpt2_tensor(m, i)->name, x->name + strlen("transformer.")))
                    i++;
                if (k < added.n) ck_assert_str_eq(gpt2_tensor(m, i)->name, x->name);
                float *d = tensor_part(m, i, GPT2_GRADIENT);
                const size_t n = gpt2_tensor(m, i)->n;
                double squares = 0, dot = 0, e = 10 * x->f32_l2 + 0x1p-23 * x->l2;
                for (size_t j = 0; j < n; j++) {
                    squares += (double)d[j] * (double)d[j];
                    dot += (double)d[j] * cos(0.1 * (double)j);
                }
                ck_assert_msg(fabs(sqrt(squares) - x->l2) <= e &&
                                  fabs(dot - x->dot_cos) <= e * sqrt((double)n),
                              "%s, %s, %s: norm %.9g, not %.9g; dot_cos %.9g, not %.9g",
                              want->placement, want->activation, x->name, sqrt(squares), x->l2, dot,
                              x->dot_cos);
                free(d);
            }
            discard(m);
        }
}
END_TEST

/* Each tensor moved along its gradient g by +-step |g|: the loss must rise by 2 step |g|^2. In
   float32 a difference of losses near 4 is known to some 1e-6, so 3 % is allowed where the rise is
   1e-3. Through a whole layer: the gradients of layer 0 come through the adapters of layer 1. */
START_TEST(gradients_are_slopes) {
    for (int g = 0; g < 6; g++) {
        const bool houlsby = g < 3, norms = true;
        const GPT2Noise noise = {.resid_pdrop = 0.1f, .seed = 3, .step = 7};
        float logp[N];
        plan_form(houlsby, library_names[g % 3], 7, norms, 0.3f);
        GPT2 *m = make(false, true, g % 2);
        loss_of(m, &noise, logp);
        gpt2_backward(m, dlogp, NULL, NULL);
        for (int i = 0; i < gpt2_tensors(m); i++) {
            const GPT2Tensor *t = gpt2_tensor(m, i);
            if (!t->trains) continue;
            float *w = tensor_part(m, i, GPT2_WEIGHT), *d = tensor_part(m, i, GPT2_GRADIENT),
                  *moved = (float *)xmalloc(sizeof *moved * t->n);
            double square = 0, loss[2];
            for (size_t j = 0; j < t->n; j++) square += (double)d[j] * (double)d[j];
            ck_assert_msg(square > 1e-8, "%s has no gradient", t->name);
            const double step = 5e-4 / square;  // a rise of 1e-3, if it were a plane
            const double bounded = step * sqrt(square) > 0.02 ? 0.02 / sqrt(square) : step;
            for (int side = 0; side < 2; side++) {
                for (size_t j = 0; j < t->n; j++)
                    moved[j] = w[j] + (float)((side ? bounded : -bounded) * (double)d[j]);
                gpt2_write(m, i, GPT2_WEIGHT, 0, t->n, moved);
                loss[side] = loss_of(m, &noise, logp);
            }
            gpt2_write(m, i, GPT2_WEIGHT, 0, t->n, w);
            const double rise = loss[1] - loss[0], wanted = 2 * bounded * square;
            ck_assert_msg(fabs(rise - wanted) <= 0.03 * wanted + 3e-6,
                          "%s, %s: %s: along its gradient the loss rises by %g, not by %g",
                          houlsby ? "houlsby" : "pfeiffer", activations[g % 3].name, t->name, rise,
                          wanted);
            free(w);
            free(d);
            free(moved);
        }
        discard(m);
    }
}
END_TEST

/* logp, and the gradients of all that trains. */
static float *results(bool checkpointing, size_t *n) {
    const GPT2Noise noise = {.resid_pdrop = 0.1f, .seed = 3, .step = 7};
    GPT2 *m = make(false, true, checkpointing);
    float *all = (float *)xmalloc(sizeof(float) * 100000);
    loss_of(m, &noise, all);
    *n = N;
    for (int twice = 0; twice < 2; twice++) {  // gradients add up
        loss_of(m, &noise, all);
        gpt2_backward(m, dlogp, NULL, NULL);
    }
    for (int i = 0; i < gpt2_tensors(m); i++) {
        if (!gpt2_tensor(m, i)->trains) continue;
        gpt2_read(m, i, GPT2_GRADIENT, 0, gpt2_tensor(m, i)->n, all + *n);
        *n += gpt2_tensor(m, i)->n;
    }
    gpt2_free(m);
    return all;
}

START_TEST(neither_checkpointing_nor_threads_change_a_bit) {
    for (int houlsby = 0; houlsby < 2; houlsby++) {
        size_t n, n2;
        plan_form(houlsby, "swish", 7, true, 0.3f);
        omp_set_num_threads(1);
        float *one = results(false, &n);
        for (int threads = 1; threads <= 3; threads++)
            for (int checkpointing = 0; checkpointing < 2; checkpointing++) {
                omp_set_num_threads(threads);
                float *other = results(checkpointing, &n2);
                ck_assert(n == n2 && n > N && !memcmp(one, other, sizeof(float) * n));
                free(other);
            }
        free(one);
        added_free(&added);
    }
    omp_set_num_threads(2);
}
END_TEST

/* A model as it starts a run, and the same model without adapters. */
START_TEST(the_start_is_the_base_to_the_bit) {
    for (int houlsby = 0; houlsby < 2; houlsby++) {
        const Batch prompts = {.S = 2,
                               .N = 8,
                               .start = (int[]){0, 5, 8},
                               .tokens = (int[]){3, 14, 15, 9, 26, 5, 35, 8}};
        const Sampler sampler = {
            .temperature = 1, .top_p = 1, .max_new_tokens = 12, .stop_token = -1, .seed = 4};
        float logp[2][N];
        Generation out[2];
        plan_form(houlsby, "relu", 7, false, 0.1f);
        GPT2 *m = make(true, true, false);
        const GPT2Noise noise = {.seed = 1};  // its dropout must not matter either
        loss_of(m, &noise, logp[0]);
        gpt2_generate(m, &prompts, &sampler, &out[0], NULL, NULL);
        GPT2 *base = gpt2_create(&tiny, false);
        for (int i = 0; i < gpt2_own_tensors(m); i++) {
            float *w = tensor_part(m, i, GPT2_WEIGHT);
            gpt2_write(base, i, GPT2_WEIGHT, 0, gpt2_tensor(m, i)->n, w);
            free(w);
        }
        gpt2_reserve(
            base,
            &(GPT2Limits){.tokens = N, .sequences = S, .scored = N, .slots = 2, .positions = 32});
        loss_of(base, NULL, logp[1]);
        gpt2_generate(base, &prompts, &sampler, &out[1], NULL, NULL);
        ck_assert(!memcmp(logp[0], logp[1], sizeof logp[0]));
        ck_assert_int_eq(out[0].start[2], 24);
        ck_assert(!memcmp(out[0].tokens, out[1].tokens, sizeof(int) * 24) &&
                  !memcmp(out[0].logp, out[1].logp, sizeof(float) * 24));
        // and it learns: the first gradient is up's alone, for down is still multiplied by zero
        loss_of(m, &noise, logp[0]);  // again: decoding has used the same memory
        gpt2_backward(m, dlogp, NULL, NULL);
        for (int i = gpt2_own_tensors(m); i < gpt2_tensors(m); i++) {
            float *d = tensor_part(m, i, GPT2_GRADIENT);
            double sum = 0;
            for (size_t j = 0; j < gpt2_tensor(m, i)->n; j++) sum += fabs((double)d[j]);
            ck_assert_msg((sum > 0) == ((i - gpt2_own_tensors(m)) % PER_ADAPTER >= UP_W), "%s",
                          gpt2_tensor(m, i)->name);
            free(d);
        }
        ck_assert(technique_is_untrained(&technique, m));
        for (int i = 0; i < 2; i++) generation_free(&out[i]);
        gpt2_free(base);
        discard(m);
    }
}
END_TEST

/* A token that is decoded has the bits it has in a batch. */
START_TEST(decoding_has_the_bits_of_a_batch) {
    for (int houlsby = 0; houlsby < 2; houlsby++) {
        const Batch prompt = {
            .S = 1, .N = 5, .start = (int[]){0, 5}, .tokens = (int[]){3, 14, 15, 9, 26}};
        const Sampler sampler = {
            .temperature = 1, .top_p = 1, .max_new_tokens = 12, .stop_token = -1, .seed = 4};
        Generation g;
        plan_form(houlsby, "gelu_new", 7, false, 0.1f);
        GPT2 *m = make(false, false, false);
        gpt2_generate(m, &prompt, &sampler, &g, NULL, NULL);
        int text[17], next[16];
        float logp[16];
        memcpy(text, prompt.tokens, sizeof(int) * 5);
        memcpy(text + 5, g.tokens, sizeof(int) * 12);
        for (int i = 0; i < 16; i++) next[i] = i < 4 ? -1 : text[i + 1];
        gpt2_forward(m, &(Batch){.S = 1, .N = 16, .start = (int[]){0, 16}, .tokens = text}, NULL);
        gpt2_logprob(m, next, 1, logp, NULL, NULL);
        ck_assert(!memcmp(logp + 4, g.logp, sizeof(float) * 12));
        generation_free(&g);
        discard(m);
    }
}
END_TEST

START_TEST(initialisation) {
    for (int bert = 0; bert < 2; bert++) {
        plan_form(true, "relu", 64, false, 0);
        args.form.init = bert ? BERT : XAVIER;
        GPT2 *m = make(true, false, false);
        for (int i = gpt2_own_tensors(m); i < gpt2_tensors(m); i++) {
            const int kind = (i - gpt2_own_tensors(m)) % PER_ADAPTER, n = (int)gpt2_tensor(m, i)->n;
            float *w = tensor_part(m, i, GPT2_WEIGHT);
            double sum = 0, squares = 0, most = 0;
            for (int j = 0; j < n; j++) {
                sum += (double)w[j];
                squares += (double)w[j] * (double)w[j];
                most = fmax(most, fabs((double)w[j]));
            }
            const double bound = sqrt(6.0 / (24 + 64)), deviation = bert ? 0.02 : bound / sqrt(3);
            if (kind == DOWN_B || kind == UP_B || (kind == UP_W && !bert))
                ck_assert(most == 0);
            else {  // 1536 numbers: mean within 5 sqrt(1/1536), deviation within 10 %
                ck_assert_double_lt(fabs(sum / n), 5 * deviation / sqrt(n));
                ck_assert_double_eq_tol(sqrt(squares / n) / deviation, 1, 0.1);
                if (!bert) ck_assert(most <= bound && most > 0.99 * bound);
            }
            free(w);
        }
        discard(m);
    }
}
END_TEST

/* ---- counts, names and shapes ---------------------------------------------------------------- */

START_TEST(parameters_are_those_of_the_table) {
    // by arithmetic, 2 C D + D + C an adapter, and as the adapters library counts them; (2 L + 1) 2
    // C for the norms
    static const struct {
        int L, C, NH, factored;
        size_t base, houlsby16, pfeiffer16, houlsby64, pfeiffer64, norms;
    } table[] = {{6, 768, 12, 48, 81912576, 894528, 447264, 1189632, 594816, 19968},
                 {12, 768, 12, 48, 124439808, 1789056, 894528, 2379264, 1189632, 38400},
                 {24, 1024, 16, 64, 354823168, 6343680, 3171840, 6343680, 3171840, 100352},
                 {36, 1280, 20, 80, 774030080, 14843520, 7421760, 11893248, 5946624, 186880},
                 {48, 1600, 25, 100, 1557611200, 30883200, 15441600, 19820544, 9910272, 310400}};
    for (int i = 0; i < LENGTH(table); i++) {
        const GPT2Config c = {.n_positions = 1024,
                              .vocab_size = 50257,
                              .n_layer = table[i].L,
                              .n_head = table[i].NH,
                              .n_embd = table[i].C,
                              .n_inner = 4 * table[i].C};
        ck_assert_uint_eq(gpt2_parameters(&c, TRAIN_ALL), table[i].base);
        ck_assert_uint_eq(gpt2_parameters(&c, TRAIN_NORMS), table[i].norms);
        for (int pfeiffer = 0; pfeiffer < 2; pfeiffer++)
            for (int factor = 0; factor < 2; factor++) {
                set_defaults();
                args.form.placement = pfeiffer ? PFEIFFER : HOULSBY;
                args.reduction_factor = factor ? 16 : 0;
                plan(&(Run){.config = c}, NULL);
                ck_assert_int_eq(args.form.dim, factor ? table[i].factored : 64);
                ck_assert_uint_eq(added_parameters(&added),
                                  factor ? (pfeiffer ? table[i].pfeiffer16 : table[i].houlsby16)
                                         : (pfeiffer ? table[i].pfeiffer64 : table[i].houlsby64));
                added_free(&added);
            }
    }
    char text[32];
    ck_assert_str_eq(with_commas(7, text), "7");
    ck_assert_str_eq(with_commas(126818, text), "126,818");
    ck_assert_str_eq(with_commas(1234567890, text), "1,234,567,890");
}
END_TEST

/* The exact contents of adapter.safetensors, as the library's own save_adapter writes them for a
 * GPT2LMHeadModel of 2 layers and 24 channels. */
START_TEST(the_file_has_the_librarys_names_and_shapes) {
    for (int houlsby = 0; houlsby < 2; houlsby++)
        for (int norms = 0; norms < 2; norms++) {
            char path[128];
            Error e;
            int expected = 0;
            plan_form(houlsby, "relu", 6, norms, 0);
            GPT2 *m = make(false, true, false);
            snprintf(path, sizeof path, "%s/names", work);
            ck_assert_msg(!technique_save(&technique, m, path, "some/gpt2", NULL, &e), "%s",
                          e.text);
            strcat(path, "/adapter.safetensors");
            SafeTensors *st = st_open(path, &e);
            ck_assert_msg(st, "%s", e.text);
            ck_assert_str_eq(st_metadata(st, "format"), "pt");
            static const struct {
                const char *name;
                int ndim;
                size_t shape[2];
            } each[] = {{"adapter_down.0.weight", 2, {6, 24}},
                        {"adapter_down.0.bias", 1, {6}},
                        {"adapter_up.weight", 2, {24, 6}},
                        {"adapter_up.bias", 1, {24}}};
            for (int layer = 0; layer < 2; layer++)
                for (int site = houlsby ? 0 : 1; site < 2; site++)
                    for (int k = 0; k < LENGTH(each); k++, expected++) {
                        char name[128];
                        snprintf(name, sizeof name, "transformer.h.%d.%s.adapters.adapter.%s",
                                 layer, site ? "output_adapters" : "attention_adapters",
                                 each[k].name);
                        const STTensor *t = st_find(st, name);
                        ck_assert_msg(t, "%s", name);
                        ck_assert(t->type == ST_F32 && t->ndim == each[k].ndim &&
                                  t->shape[0] == each[k].shape[0] &&
                                  (t->ndim == 1 || t->shape[1] == each[k].shape[1]));
                    }
            static const char *const norm[] = {
                "h.0.ln_1.weight", "h.0.ln_1.bias", "h.0.ln_2.weight", "h.0.ln_2.bias",
                "h.1.ln_1.weight", "h.1.ln_1.bias", "h.1.ln_2.weight", "h.1.ln_2.bias",
                "ln_f.weight",     "ln_f.bias"};
            for (int k = 0; k < LENGTH(norm); k++) {
                char name[128];
                snprintf(name, sizeof name, "transformer.%s", norm[k]);
                ck_assert_msg(!st_find(st, name) == !norms, "%s", name);
            }
            ck_assert_int_eq(st_count(st), expected + (norms ? LENGTH(norm) : 0));
            st_close(st);
            discard(m);
        }
}
END_TEST

START_TEST(adapter_config_json_comes_back) {
    static const int dims[] = {1, 2, 5, 6, 7, 12, 23, 24, 25, 48, 100};
    for (int i = 0; i < LENGTH(dims); i++)
        for (int g = 0; g < 6; g++) {
            Error e;
            char path[128];
            snprintf(path, sizeof path, "%s/config", work);
            Bottleneck b = {.name = "some name",
                            .dim = dims[i],
                            .placement = g < 3 ? HOULSBY : PFEIFFER,
                            .activation = (unsigned)g % 3,
                            .init = g % 2 ? BERT : XAVIER,
                            .dropout = 0.1f,
                            .norms = g % 2},
                       back;
            char *text = hf_bottleneck_text(&b, &tiny, "\xff not UTF-8");
            ck_assert_int_eq(shell("mkdir -p %s", path), 0);
            strcat(path, "/adapter_config.json");
            FILE *f = fopen(path, "w");
            ck_assert(f && fputs(text, f) >= 0 && !fclose(f));
            free(text);
            *strrchr(path, '/') = 0;
            ck_assert_msg(!hf_bottleneck(path, &tiny, &back, &e), "%s", e.text);
            ck_assert_str_eq(back.name, b.name);
            ck_assert(back.activation == b.activation && back.dim == b.dim &&
                      back.placement == b.placement && back.init == b.init &&
                      back.dropout == b.dropout && back.norms == b.norms);
        }
}
END_TEST

/* The library's own file, written by its version 1.3.0 (double_seq_bn, reduction_factor 4), and
 * what must not be taken for it. */
static const char librarys[] =
    "{\"config\": {\"adapter_residual_before_ln\": false, \"cross_adapter\": false, \"dropout\": "
    "0.0, \"factorized_phm_W\": true, \"factorized_phm_rule\": false, "
    "\"hypercomplex_nonlinearity\": \"glorot-uniform\", \"init_weights\": \"bert\", "
    "\"init_weights_seed\": null, \"inv_adapter\": null, "
    "\"inv_adapter_reduction_factor\": null, \"is_parallel\": false, \"learn_phm\": true, "
    "\"leave_out\": [], \"ln_after\": false, \"ln_before\": false, "
    "\"mh_adapter\": true, \"non_linearity\": \"swish\", \"original_ln_after\": true, "
    "\"original_ln_before\": false, \"output_adapter\": true, \"phm_bias\": true, "
    "\"phm_c_init\": \"normal\", \"phm_dim\": 4, \"phm_init_range\": 0.0001, \"phm_layer\": false, "
    "\"phm_rank\": 1, \"reduction_factor\": 4, "
    "\"residual_before_ln\": true, \"scaling\": 1.0, \"shared_W_phm\": false, \"shared_phm_rule\": "
    "true, \"stochastic_depth\": 0.0, \"use_gating\": false}, "
    "\"hidden_size\": 24, \"model_class\": \"GPT2LMHeadModel\", \"model_name\": \"\", "
    "\"model_type\": \"gpt2\", \"name\": \"houl\", \"version\": \"adapters.1.3.0\"}";

/* The status of reading it after `from` was replaced by `to`. */
static int read_edited(const char *from, const char *to, Bottleneck *b, Error *e) {
    char path[128];
    Str text = {0};
    const char *at = strstr(librarys, from);
    ck_assert_msg(at, "%s", from);
    str_printf(&text, "%.*s%s%s", (int)(at - librarys), librarys, to, at + strlen(from));
    snprintf(path, sizeof path, "%s/edited", work);
    ck_assert_int_eq(shell("mkdir -p %s", path), 0);
    strcat(path, "/adapter_config.json");
    FILE *f = fopen(path, "w");
    ck_assert(f && fputs(text.s, f) >= 0 && !fclose(f));
    free(text.s);
    *strrchr(path, '/') = 0;
    return hf_bottleneck(path, &tiny, b, e);
}

START_TEST(the_librarys_adapter_config_is_read_and_others_refused) {
    Bottleneck b;
    Error e;
    ck_assert_int_eq(read_edited("gpt2", "gpt2", &b, &e), 0);
    ck_assert(b.dim == 6 && b.placement == HOULSBY && b.init == BERT && b.activation == SILU &&
              b.dropout == 0 && !b.norms);
    ck_assert_str_eq(b.name, "houl");
    ck_assert_int_eq(read_edited("\"reduction_factor\": 4", "\"reduction_factor\": 0.1", &b, &e),
                     0);
    ck_assert_int_eq(b.dim, 239);  // 24 // 0.1 in Python
    ck_assert_int_eq(read_edited("\"reduction_factor\": 4", "\"reduction_factor\": 1000", &b, &e),
                     0);
    ck_assert_int_eq(b.dim, 1);
    // without a version "gelu" is what is now called gelu_new; with one it is the exact form, which
    // is not implemented
    ck_assert_int_eq(read_edited("\"swish\"", "\"gelu\"", &b, &e), -1);
    ck_assert_msg(strstr(e.text, "erf"), "%s", e.text);
    static const char *const refused[][3] = {
        {"\"gpt2\"", "\"bert\"", "model_type"},
        {"\"hidden_size\": 24", "\"hidden_size\": 768", "hidden_size is 768, expected 24"},
        {"\"reduction_factor\": 4", "\"reduction_factor\": {\"default\": 16}", "reduction_factor"},
        {"\"reduction_factor\": 4", "\"reduction_factor\": 0", "reduction_factor"},
        {"\"reduction_factor\": 4", "\"reduction_factor\": 1e-300", "reduction_factor"},
        {"\"swish\"", "\"tanh\"", "non_linearity"},
        {"\"ln_before\": false", "\"ln_before\": true", "ln_before"},
        {"\"is_parallel\": false", "\"is_parallel\": true", "is_parallel"},
        {"\"scaling\": 1.0", "\"scaling\": \"learned\"", "scaling"},
        {"\"scaling\": 1.0", "\"scaling\": 2.0", "scaling"},
        {"\"leave_out\": []", "\"leave_out\": [0]", "leave_out"},
        {"\"phm_layer\": false", "\"phm_layer\": true", "phm_layer"},
        {"\"use_gating\": false", "\"use_gating\": true", "use_gating"},
        {"\"inv_adapter\": null", "\"inv_adapter\": \"nice\"", "inv_adapter"},
        {"\"original_ln_before\": false", "\"original_ln_before\": true", "original_ln_before"},
        {"\"config\": {", "\"config\": {\"architecture\": \"lora\", ", "architecture"},
        {"\"config\": {", "\"config\": [], \"x\": {", "neither"},
        {"\"mh_adapter\": true", "\"mh_adapter\": 1", "mh_adapter"},
        {"\"houl\"", "\"a.b\"", "name"},
        {"\"houl\"", "7", "name"},
        {"\"dropout\": 0.0", "\"dropout\": 1.5", "dropout"},
        {"\"config\": {", "\"peft_type\": \"LORA\", \"config\": {", "PEFT's"},
        {"{", "", "adapter_config.json"}};
    for (int i = 0; i < LENGTH(refused); i++) {
        ck_assert_msg(read_edited(refused[i][0], refused[i][1], &b, &e) == -1, "%s", refused[i][1]);
        ck_assert_msg(strstr(e.text, refused[i][2]), "%s: %s", refused[i][1], e.text);
    }
    ck_assert_int_eq(read_edited(", \"version\": \"adapters.1.3.0\"", "", &b, &e), 0);
    ck_assert_int_eq(read_edited("\"scaling\": 1.0", "\"scaling\": 1", &b, &e), 0);
}
END_TEST

/* ---- the program ----------------------------------------------------------------------------- */

/* adapter with the built-in model and data, few steps, and `more` flags; what it prints goes to
 * work/NAME.txt. */
static int run_adapter(const char *name, const char *more) {
    return shell(
        "%s/adapter --model test/tiny --data %s/train.jsonl --eval %s/held-out.jsonl --output "
        "%s/%s --eval_samples 2 "
        "--max_new_tokens 8 --logging_steps 3 --warmup_steps 2 --learning_rate 3e-3 --max_steps 4 "
        "--adapter_dim 8 %s >%s/%s.txt 2>&1",
        build(), work, work, work, name, more, work, name);
}

static bool same(const char *a, const char *b) {
    return shell("cmp -s %s/%s %s/%s", work, a, work, b) == 0;
}
static bool says(const char *name, const char *what) {
    return shell("grep -q -e '%s' %s/%s.txt", what, work, name) == 0;
}

START_TEST(the_defaults_are_the_published_ones) {
    Run run = {0};
    Error e;
    char *none[] = {"adapter", "--model=m", NULL};
    ck_assert_msg(run_parse(&run, &program, 2, none, &e) == 0, "%s", e.text);
    ck_assert(run.learning_rate == 1e-4f && args.form.dropout == 0.1f && run.weight_decay == 0.01f);
    ck_assert_int_eq(args.form.dim, 64);
    ck_assert(args.form.placement == HOULSBY && args.form.activation == RELU &&
              args.form.init == XAVIER);
    ck_assert(!args.form.norms && !task.gradient_checkpointing && !files.adapter &&
              args.reduction_factor == 0 && !strcmp(task.dropout, "0"));
    run_free(&run);
    char *argv[] = {"adapter", "--placement=pfeiffer", "--activation", "silu", "--reduction_factor",
                    "16",      "--train_layernorm",    "--init",       "bert", NULL};
    ck_assert_msg(run_parse(&run, &program, 9, argv, &e) == 0, "%s", e.text);
    ck_assert(args.form.placement == PFEIFFER && args.form.activation == SILU &&
              args.reduction_factor == 16 && args.form.norms);
    run_free(&run);
    ck_assert(strlen(program.about) > 20);
}
END_TEST

START_TEST(it_trains_what_it_says_and_leaves_the_base_alone) {
    // a base whose file cannot be written, in a directory that cannot be written
    ck_assert_int_eq(shell("mkdir %s/base && cp test/tiny/*.* %s/base && chmod -R a-w %s/base && "
                           "sha256sum %s/base/* >%s/sums",
                           work, work, work, work, work),
                     0);
    char more[256];
    snprintf(more, sizeof more,
             "--model %s/base --max_steps 12 --per_device_train_batch_size 8 "
             "--gradient_accumulation_steps 1 --eval_steps 6",
             work);
    ck_assert_int_eq(run_adapter("learn", more), 0);
    ck_assert_int_eq(shell("sha256sum --quiet -c %s/sums", work), 0);
    ck_assert_int_eq(shell("chmod -R u+w %s/base", work), 0);
    ck_assert(says("learn",
                   "adapters: houlsby, 128 -> 8 -> 128, relu, dropout 0.1, after attention and MLP "
                   "of all 3 layers"));
    ck_assert(says("learn",
                   "parameters: 13,104 of 673,840 are trained, 1.9447 %"));  // 6 (2 128 8 +
                                                                             // 8 + 128); +
                                                                             // 660,736
    ck_assert(says("learn", "load_adapter("));
    // only the adapter is written, and the best one, too
    ck_assert_int_eq(
        shell("cd %s/learn && test ! -e model.safetensors && test ! -e config.json && test -s "
              "adapter.safetensors && test -s adapter_config.json && "
              "test -s best/adapter.safetensors && test -s checkpoint-12/adapter.safetensors && "
              "cmp -s adapter.safetensors checkpoint-12/adapter.safetensors",
              work),
        0);
    // the held-out loss fell, and evaluating the file gives it again
    snprintf(more, sizeof more, "--max_steps 0 --adapter %s/learn --overwrite_output_dir", work);
    ck_assert_int_eq(run_adapter("again", more), 0);
    ck_assert(says("again", "an adapter of AdapterHub"));
    ck_assert_int_eq(shell("test \"$(grep 'held-out, after' %s/learn.txt | cut -c17-)\" = \"$(grep "
                           "'held-out, before' %s/again.txt | cut -c17-)\"",
                           work, work),
                     0);
    ck_assert_int_eq(
        shell("b=$(sed -n 's/held-out, before *loss \\([0-9.]*\\).*/\\1/p' %s/learn.txt | head "
              "-1); a=$(sed -n 's/held-out, after *loss \\([0-9.]*\\).*/\\1/p' "
              "%s/learn.txt); awk -v a=$a -v b=$b 'BEGIN { exit !(a < 0.8 * b) }'",
              work, work),
        0);
}
END_TEST

START_TEST(a_resumed_run_has_the_bits_of_an_uninterrupted_one) {
    static const char *const kinds[] = {
        "--dropout 0.1",
        "--placement pfeiffer --activation silu --reduction_factor 10 --train_layernorm "
        "--gradient_checkpointing --init bert"};
    for (int i = 0; i < LENGTH(kinds); i++) {
        char more[512];
        snprintf(more, sizeof more,
                 "%s --max_steps 6 --save_steps 3 --save_total_limit 0 --keep_moments "
                 "--overwrite_output_dir",
                 kinds[i]);
        ck_assert_int_eq(run_adapter("whole", more), 0);
        // the same, but everything after step 3 is lost: the checkpoint of step 3 is all that is
        // left, as after a crash
        ck_assert_int_eq(shell("rm -rf %s/cut && cp -r %s/whole %s/cut && rm -r "
                               "%s/cut/checkpoint-6 %s/cut/adapter.safetensors",
                               work, work, work, work, work),
                         0);
        snprintf(more, sizeof more,
                 "%s --max_steps 6 --save_steps 3 --save_total_limit 0 --keep_moments --resume",
                 kinds[i]);
        ck_assert_int_eq(run_adapter("cut", i ? strcat(more, " --adapter_dim 12") : more),
                         0);  // 128 / 10
        ck_assert(same("whole/adapter.safetensors", "cut/adapter.safetensors"));
        ck_assert(
            same("whole/checkpoint-6/state.safetensors", "cut/checkpoint-6/state.safetensors"));
        ck_assert(same("whole/log.jsonl", "cut/log.jsonl"));
    }
}
END_TEST

START_TEST(threads_change_no_bit) {
    setenv("OMP_NUM_THREADS", "1", 1);
    ck_assert_int_eq(run_adapter("one", "--train_layernorm"), 0);
    setenv("OMP_NUM_THREADS", "3", 1);
    ck_assert_int_eq(run_adapter("three", "--train_layernorm"), 0);
    unsetenv("OMP_NUM_THREADS");
    ck_assert(same("one/adapter.safetensors", "three/adapter.safetensors"));
}
END_TEST

START_TEST(an_adapter_is_trained_on_and_answers) {
    char more[512];
    ck_assert_int_eq(
        run_adapter("first", "--placement pfeiffer --activation gelu --train_layernorm"), 0);
    // its form needs no flags: those of run_adapter agree with it
    snprintf(more, sizeof more, "--adapter %s/first --max_steps 0", work);
    ck_assert_int_eq(run_adapter("second", more), 0);
    ck_assert(same("first/adapter.safetensors", "second/adapter.safetensors") &&
              says("second", "adapters: .*, gelu, .* after the MLP of all"));
    snprintf(more, sizeof more, "--adapter %s/first", work);
    ck_assert_int_eq(run_adapter("third", more), 0);
    ck_assert(!same("first/adapter.safetensors", "third/adapter.safetensors"));
    ck_assert_int_eq(shell("%s/adapter --model test/tiny --adapter %s/first --prompt 'Where does "
                           "Anna live?' --max_new_tokens 8 --temperature 0 >%s/answer.txt 2>&1 "
                           "&& test $(wc -c <%s/answer.txt) -gt 60",
                           build(), work, work, work),
                     0);
}
END_TEST

/* Copies an adapter's directory and edits its tensors: without one, with one more, with one under
 * another name, with up all zero. */
typedef enum { AS_IT_IS, ONE_LESS, ONE_MORE, RENAMED, ZERO_UP, BARE } Edit;

static void edited(const char *from, const char *to, Edit edit) {
    char path[256];
    Error e;
    ck_assert_int_eq(shell("rm -rf %s/%s && mkdir %s/%s && cp %s/%s/adapter_config.json %s/%s/",
                           work, to, work, to, work, from, work, to),
                     0);
    snprintf(path, sizeof path, "%s/%s/adapter.safetensors", work, from);
    SafeTensors *st = st_open(path, &e);
    ck_assert_msg(st, "%s", e.text);
    STWriter *w = st_new();
    for (int i = edit == ONE_LESS; i < st_count(st); i++) {
        char name[256];
        snprintf(name, sizeof name, "%s%s",
                 st_at(st, i)->name + (edit == BARE ? strlen("transformer.") : 0),
                 edit == RENAMED && i == 2 ? "x" : "");
        st_declare(w, name, st_at(st, i)->ndim, st_at(st, i)->shape);
    }
    if (edit == ONE_MORE) st_declare(w, "transformer.h.0.extra", 1, (size_t[]){1});
    snprintf(path, sizeof path, "%s/%s/adapter.safetensors", work, to);
    ck_assert_int_eq(st_begin(w, path, &e), 0);
    for (int i = edit == ONE_LESS; i < st_count(st); i++) {
        const STTensor *t = st_at(st, i);
        float *x = (float *)xmalloc(sizeof *x * t->n);
        ck_assert_int_eq(st_floats(t, 0, t->n, x, &e), 0);
        if (edit == ZERO_UP && strstr(t->name, "adapter_up")) memset(x, 0, sizeof *x * t->n);
        ck_assert_int_eq(st_write(w, x, t->n, &e), 0);
        free(x);
    }
    if (edit == ONE_MORE) ck_assert_int_eq(st_write(w, (float[]){1}, 1, &e), 0);
    ck_assert_msg(!st_end(w, true, &e), "%s", e.text);
    st_close(st);
}

START_TEST(an_adapter_is_read_strictly) {
    static const struct {
        Edit edit;
        int status;
        const char *says;
    } cases[] = {{AS_IT_IS, 0, "an adapter of AdapterHub"},
                 {BARE, 0, "an adapter of AdapterHub"},
                 {ONE_LESS, 2, "is missing, expected with shape"},
                 {ONE_MORE, 2, "h.0.extra is not one of the"},
                 {RENAMED, 2, "is missing"},
                 {ZERO_UP, 2, "every up projection is zero"}};
    char more[512];
    ck_assert_int_eq(run_adapter("good", "--train_layernorm"), 0);
    for (int i = 0; i < LENGTH(cases); i++) {
        edited("good", "bad", cases[i].edit);
        snprintf(more, sizeof more, "--adapter %s/bad --max_steps 0 --overwrite_output_dir", work);
        ck_assert_msg(run_adapter("strict", more) == cases[i].status, "case %d", i);
        ck_assert_msg(says("strict", cases[i].says), "%s", cases[i].says);
    }
    snprintf(more, sizeof more,
             "--adapter %s/bad --max_steps 0 --overwrite_output_dir --allow_untrained", work);
    ck_assert_int_eq(run_adapter("strict", more), 0);
    // another base, another form than the flags say, another library's directory, none
    static const struct {
        const char *edit, *flags, *says;
    } more_cases[] = {
        {"s/\"hidden_size\": 128/\"hidden_size\": 768/", "", "hidden_size is 768, expected 128"},
        {"s/\"reduction_factor\": 16/\"reduction_factor\": 8/", "--adapter_dim 16",
         "has shape .8,128., expected .16,128."},
        {"", "--adapter_dim 16", "has a bottleneck of 8, and the flags say 16"},
        {"", "--placement pfeiffer", "the placement houlsby"},
        {"", "--activation silu", "the activation relu"},
        {"s/\"config\": {/\"peft_type\": \"LORA\", \"config\": {/", "", "give it to ./lora"},
        {"d", "", "adapter_config.json"}};
    for (int i = 0; i < LENGTH(more_cases); i++) {
        edited("good", "bad", AS_IT_IS);
        ck_assert_int_eq(
            shell("sed -i -e '%s' %s/bad/adapter_config.json", more_cases[i].edit, work), 0);
        snprintf(more, sizeof more, "--adapter %s/bad --max_steps 0 --overwrite_output_dir %s",
                 work, more_cases[i].flags);
        ck_assert_msg(run_adapter("strict", more) == 2, "case %d", i);
        ck_assert_msg(says("strict", more_cases[i].says), "%s", more_cases[i].says);
    }
    edited("good", "bad", AS_IT_IS);
    ck_assert_int_eq(shell("mv %s/bad/adapter.safetensors %s/bad/pytorch_adapter.bin", work, work),
                     0);
    snprintf(more, sizeof more, "--adapter %s/bad --max_steps 0 --overwrite_output_dir", work);
    ck_assert_int_eq(run_adapter("strict", more), 2);
    ck_assert(says("strict", "neither container of torch.save"));
    ck_assert_int_eq(run_adapter("plain", ""), 0);
    snprintf(more, sizeof more,
             "--adapter %s/plain --train_layernorm --max_steps 0 --overwrite_output_dir", work);
    ck_assert_int_eq(run_adapter("strict", more), 2);
    ck_assert(says("strict", "without the layer norms"));
}
END_TEST

START_TEST(bad_input_ends_with_2_and_leaves_no_output) {
    static const char *const bad[] = {
        "--placement neither", "--activation tanh",     "--adapter_dim 0",
        "--adapter_dropout 1", "--init zero",           "--adapter /nowhere",
        "--model /nowhere",    "--reduction_factor -1", "--no_such_flag 1"};
    for (int i = 0; i < LENGTH(bad); i++)
        ck_assert_msg(run_adapter("refused", bad[i]) == 2, "%s", bad[i]);
    ck_assert_int_ne(shell("test -e %s/refused/adapter.safetensors", work), 0);
}
END_TEST

START_TEST(a_dry_run_writes_nothing_and_counts_the_adapters) {
    ck_assert_int_eq(run_adapter("dry", "--dry_run --per_device_train_batch_size 16"), 0);
    ck_assert_int_ne(shell("test -e %s/dry", work), 0);
    ck_assert(says("dry", "parameters: 13,104") && says("dry", "«.*<|endoftext|>»"));
    // the plan holds what technique_reserve will take: more with more places
    ck_assert_int_eq(
        run_adapter("dry2", "--dry_run --per_device_train_batch_size 16 --adapter_dim 512"), 0);
    ck_assert(!same("dry.txt", "dry2.txt"));
    plan_form(true, "relu", 6, false, 0);
    const GPT2Limits limits = {.tokens = N, .train = true},
                     less = {.tokens = N, .train = true, .gradient_checkpointing = true};
    ck_assert_uint_eq(technique_bytes(&technique, &limits, &tiny),
                      sizeof(float) * N * (2 * 2 * (24 + 6) + 6));
    ck_assert_uint_eq(technique_bytes(&technique, &less, &tiny),
                      sizeof(float) * N * (2 * (24 + 6) + 6));
    added_free(&added);
}
END_TEST

int main(void) {
    if (!mkdtemp(work) || shell("head -40 test/tiny/domain.jsonl >%s/train.jsonl && head -6 "
                                "test/tiny/domain-eval.jsonl >%s/held-out.jsonl",
                                work, work))
        return 1;
    Suite *s = suite_create("adapter");
    TCase *inside = tcase_create("inside"), *program = tcase_create("program");
    const TTest *const inside_tests[] = {the_loss_is_the_mean_over_all_scored_tokens,
                                         it_computes_what_the_adapters_library_computes,
                                         gradients_are_slopes,
                                         neither_checkpointing_nor_threads_change_a_bit,
                                         the_start_is_the_base_to_the_bit,
                                         decoding_has_the_bits_of_a_batch,
                                         initialisation,
                                         parameters_are_those_of_the_table,
                                         the_file_has_the_librarys_names_and_shapes,
                                         adapter_config_json_comes_back,
                                         the_librarys_adapter_config_is_read_and_others_refused,
                                         the_defaults_are_the_published_ones};
    const TTest *const program_tests[] = {it_trains_what_it_says_and_leaves_the_base_alone,
                                          a_resumed_run_has_the_bits_of_an_uninterrupted_one,
                                          threads_change_no_bit,
                                          an_adapter_is_trained_on_and_answers,
                                          an_adapter_is_read_strictly,
                                          bad_input_ends_with_2_and_leaves_no_output,
                                          a_dry_run_writes_nothing_and_counts_the_adapters};
    for (int i = 0; i < LENGTH(inside_tests); i++) tcase_add_test(inside, inside_tests[i]);
    for (int i = 0; i < LENGTH(program_tests); i++) tcase_add_test(program, program_tests[i]);
    tcase_set_timeout(inside, 600);
    tcase_set_timeout(program, 600);
    suite_add_tcase(s, inside);
    suite_add_tcase(s, program);
    int failed = run_suite(s);
    shell("chmod -R u+w %s; rm -rf %s", work, work);
    return failed != 0;
}
