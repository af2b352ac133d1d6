/*
 * check_lora.c - lora.c: which layers, its gradients, its files, its four bits.
 *
 * The gradients have two witnesses. Without dropout the model is the one whose weights are W + s
 * A^T B^T, so that the gradients by A and B follow from that model's by W, which check_gpt2.c holds
 * against central differences in double. With dropout, central differences of this model itself.
 * Everything else is promised to the bit. The program under test is $BUILD/lora.
 */
#define main program_main  // this file has its own
#include "../../lora.c"
#undef main

#undef fail
#include <check.h>
#include <omp.h>
#include "program.h"
#include "files/hf.h"
#include "files/safetensors.h"

static char work[] = "/tmp/check_lora.XXXXXX";

/* Gives the flags the program's defaults. */
static void set_defaults(void) {
    Run run = {0};
    Error e;
    char *argv[] = {"lora", "--model=m", NULL};
    if (run_parse(&run, &program, 2, argv, &e)) die("%s", e.text);
    run_free(&run);
}

START_TEST(the_loss_is_the_mean_over_all_scored_tokens) {
    const int target[] = {-1, 7, 0};
    const float logp[] = {-9, -1, -2};
    float d[3];
    ck_assert_double_eq_tol(cross_entropy(3, target, logp, 4, d), 0.75, 1e-12);  // (1 + 2) / 4
    ck_assert(d[0] == 0 && d[1] == -0.25f && d[2] == -0.25f);
}
END_TEST

/* ---- which layers ---------------------------------------------------------------------------- */

static const GPT2Config gpt2_small = {1024, 50257, 12, 12, 768, 3072, 1e-5f, 0, 0, 0, LM_HEAD};

/* -1, or a bit for each site of the first layer; layer 1's four bits follow. */
static int planned(const char *targets, Error *e) {
    LoraConfig l = {8, 8, 0, false, ""};
    snprintf(l.targets, sizeof l.targets, "%s", targets);
    int bits = 0;
    if (lora_plan(&l, &gpt2_small, e))
        bits = -1;
    else
        for (int i = 0; i < 2 * SITES; i++) bits |= (added.first[i / SITES][i % SITES] >= 0) << i;
    added_free(&added);
    return bits;
}

START_TEST(names_match_as_in_peft) {
    Error e;
    ck_assert_int_eq(planned("c_attn", &e), 0x11);
    ck_assert_int_eq(planned("c_proj", &e), 0xaa);  // that of the attention and that of the MLP
    ck_assert_int_eq(planned("attn.c_proj", &e), 0x22);
    ck_assert_int_eq(planned("mlp.c_proj", &e), 0x88);
    ck_assert_int_eq(planned("c_fc", &e), 0x44);
    ck_assert_int_eq(planned("c_attn,c_proj,c_fc", &e), 0xff);
    ck_assert_int_eq(planned("all-linear", &e), 0xff);
    ck_assert_int_eq(planned("h.1.attn.c_attn", &e), 0x10);
    ck_assert_int_eq(planned("transformer.h.0.mlp.c_fc,c_attn", &e), 0x15);
    const char *bad[] = {"",
                         "attn",
                         "c_att",
                         "_attn",
                         "q_proj",
                         "c_attn,",
                         "c_attn,,c_fc",
                         "c_attn,lm_head",
                         "c_attn c_fc",
                         "wte",
                         "h.12.attn.c_attn",
                         "0.attn.c_attn.x"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_msg(planned(bad[i], &e) == -1 || !strcmp(bad[i], "c_attn,"), "%s", bad[i]);
    ck_assert_int_eq(planned("c_attn,q_proj", &e), -1);
    ck_assert_msg(strstr(e.text, "\"q_proj\"") && strstr(e.text, "c_attn"), "%s", e.text);
}
END_TEST

START_TEST(counts_are_the_known_ones) {
    static const struct {
        int layers, heads, C;
        size_t base, own[3];
        double percent;
    } models[] = {{6, 12, 768, 81912576, {294912, 516096, 1179648}, 1.4197},          // distilgpt2
                  {12, 12, 768, 124439808, {589824, 1032192, 2359296}, 1.8607},       // gpt2
                  {24, 16, 1024, 354823168, {1572864, 2752512, 6291456}, 1.7422},     // gpt2-medium
                  {36, 20, 1280, 774030080, {2949120, 5160960, 11796480}, 1.5012},    // gpt2-large
                  {48, 25, 1600, 1557611200, {4915200, 8601600, 19660800}, 1.2465}};  // gpt2-xl
    static const char *const targets[3] = {"c_attn", "c_proj", "c_attn,c_proj,c_fc"};
    Error e;
    char text[32];
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        const GPT2Config c = {
            1024, 50257, models[i].layers, models[i].heads, models[i].C, 4 * models[i].C, 1e-5f, 0,
            0,    0,     LM_HEAD};
        ck_assert_uint_eq(gpt2_parameters(&c, TRAIN_ALL), models[i].base);
        for (int k = 0; k < 3; k++) {
            LoraConfig l = {16, 32, 0, false, ""};
            strcpy(l.targets, targets[k]);
            ck_assert(!lora_plan(&l, &c, &e));
            ck_assert_uint_eq(added_parameters(&added), models[i].own[k]);
            if (k == 2)
                ck_assert_double_eq_tol(100 * (double)added_parameters(&added) /
                                            (double)(models[i].base + added_parameters(&added)),
                                        models[i].percent, 5e-5);
            added_free(&added);
        }
    }
    ck_assert_str_eq(with_commas(6291456, text), "6,291,456");
    ck_assert_str_eq(with_commas(361114624, text), "361,114,624");
    ck_assert_str_eq(with_commas(12, text), "12");
    ck_assert_str_eq(with_commas(1000, text), "1,000");
}
END_TEST

START_TEST(names_and_shapes_are_those_of_peft) {
    static const struct {
        const char *module;
        int in, out;
    } modules[4] = {{"attn.c_attn", 768, 2304},
                    {"attn.c_proj", 768, 768},
                    {"mlp.c_fc", 768, 3072},
                    {"mlp.c_proj", 3072, 768}};
    LoraConfig l = {16, 32, 0, false, "c_attn,c_proj,c_fc"};
    Error e;
    ck_assert(!lora_plan(&l, &gpt2_small, &e));
    ck_assert_int_eq(added.n, 12 * 4 * 2);
    for (int i = 0; i < added.n; i++) {
        const GPT2Tensor *t = &added.tensor[i];
        char name[128];
        snprintf(name, sizeof name, "base_model.model.transformer.h.%d.%s.lora_%s.weight", i / 8,
                 modules[i / 2 % 4].module, i % 2 ? "B" : "A");
        ck_assert_str_eq(t->name, name);
        ck_assert_int_eq(t->ndim, 2);
        ck_assert_int_eq(t->shape[0], i % 2 ? modules[i / 2 % 4].out : 16);
        ck_assert_int_eq(t->shape[1], i % 2 ? 16 : modules[i / 2 % 4].in);
    }
    added_free(&added);
}
END_TEST

START_TEST(the_defaults_are_the_published_ones) {
    Run run = {0};
    Error e;
    char *none[] = {"lora", "--model=m", NULL};
    ck_assert_msg(run_parse(&run, &program, 2, none, &e) == 0, "%s", e.text);
    ck_assert(run.learning_rate == 2e-4f && run.warmup_steps == 20 &&
              run.per_device_train_batch_size == 2 && run.gradient_accumulation_steps == 4);
    ck_assert(args.r == 16 && args.lora_alpha == 32 && args.lora_dropout == 0.1f &&
              !args.use_rslora);
    ck_assert_str_eq(args.target_modules, "c_attn,c_proj,c_fc");
    ck_assert(!args.load_in_4bit && args.double_quant && !task.gradient_checkpointing &&
              !files.adapter && !files.merge);
    run_free(&run);
    char *argv[] = {"lora",
                    "--r",
                    "4",
                    "--load-in-4bit",
                    "--no-bnb-4bit-use-double-quant",
                    "--use-rslora",
                    "--lora-alpha=8",
                    NULL};
    ck_assert_msg(run_parse(&run, &program, 7, argv, &e) == 0, "%s", e.text);
    ck_assert(args.r == 4 && args.load_in_4bit && !args.double_quant && args.use_rslora &&
              args.lora_alpha == 8);
    run_free(&run);
    set_defaults();
    // alpha / r, and alpha / sqrt(r)
    LoraConfig l = {4, 8, 0, false, "c_fc"};
    ck_assert(!lora_plan(&l, &gpt2_small, &e) && lora.scale == 2);
    added_free(&added);
    l.rslora = true;
    ck_assert(!lora_plan(&l, &gpt2_small, &e) && lora.scale == 4);
    added_free(&added);
}
END_TEST

/* ---- a small model --------------------------------------------------------------------------- */

enum { V = 19, L = 2, C = 8, F = 20, N = 11, S = 2, R = 3 };
static const GPT2Config small = {16, V, L, 2, C, F, 1e-5f, 0, 0, 0, LM_HEAD};
static const int start[] = {0, 4, N}, token[] = {3, 1, 18, 7, 0, 0, 5, 11, 2, 9, 4},
                 target[] = {1, 18, -1, 2, 0, 5, -1, 2, 9, 4, 6};
static const Batch batch = {
    .S = S, .N = N, .start = start, .tokens = token, .id = (const uint32_t[]){40, 7}};
static const float dlogp[] = {-0.3f, 0.2f, 9,     -0.1f, 0.4f, -0.2f,
                              9,     0.5f, -0.6f, 0.1f,  0.25f};  // 9: not scored
static char base[64];

static float normal(uint32_t stream, uint32_t i) {
    Random4 r = random4(20, RANDOM_DATA, stream, 0, 0, i);
    return random_normal(r.v[0], r.v[1]);
}

static void fill_tensor(GPT2 *m, int i, float size) {
    for (size_t k = 0; k < gpt2_tensor(m, i)->n; k++)
        gpt2_write(m, i, GPT2_WEIGHT, k, 1, &(float){size * normal((uint32_t)i, (uint32_t)k)});
}

/* The base model's directory, with weights large enough that every layer matters. */
static void write_base(void) {
    Error e;
    GPT2 *m = gpt2_create(&small, false);
    gpt2_init_weights(m, 1);
    for (int i = 0; i < gpt2_tensors(m); i++)
        if (gpt2_tensor(m, i)->ndim == 2) fill_tensor(m, i, 0.3f);
    snprintf(base, sizeof base, "%s/base", work);
    ck_assert_msg(!hf_save(m, base, NULL, &e), "%s", e.text);
    gpt2_free(m);
}

static GPT2Limits small_limits(bool train) {
    return (GPT2Limits){
        .tokens = N, .sequences = S, .scored = N, .train = train, .slots = S, .positions = 16};
}

/* The base with a LoRA whose B are not zero. */
static GPT2 *with_lora(const char *targets, float dropout, GPT2Limits limits) {
    LoraConfig l = {R, 5, dropout, false, ""};
    Error e;
    strcpy(l.targets, targets);
    added_free(&added);
    ck_assert_msg(!lora_plan(&l, &small, &e), "%s", e.text);
    technique_limits(&technique, &limits);
    GPT2 *m = hf_load(base, true, &e);
    ck_assert_msg(m != NULL, "%s", e.text);
    gpt2_reserve(m, &limits);
    technique_reserve(&technique, &limits, &small);
    lora_init(m, 5);
    for (int i = gpt2_own_tensors(m) + 1; i < gpt2_tensors(m); i += 2) fill_tensor(m, i, 0.3f);
    return m;
}

static const GPT2Noise some_noise = {.embd_pdrop = 0.1f, .resid_pdrop = 0.2f, .seed = 3, .step = 4};

/* sum of dlogp logp over the scored tokens */
static double loss_of(GPT2 *m, const GPT2Noise *noise) {
    float logp[N];
    double loss = 0;
    gpt2_forward(m, &batch, noise);
    gpt2_logprob(m, target, 1, logp, NULL, NULL);
    for (int i = 0; i < N; i++) loss += target[i] >= 0 ? (double)dlogp[i] * (double)logp[i] : 0;
    return loss;
}

static float *tensor_part(GPT2 *m, int i, GPT2Part part) {
    const size_t n = gpt2_tensor(m, i)->n;
    float *x = (float *)xmalloc(sizeof *x * n);
    gpt2_read(m, i, part, 0, n, x);
    return x;
}

static const char *const target_sets[] = {"c_attn,c_proj,c_fc", "c_attn", "attn.c_proj",
                                          "mlp.c_proj",         "c_fc",   "h.1.attn.c_attn"};
enum { TARGET_SETS = sizeof target_sets / sizeof *target_sets };

START_TEST(it_starts_from_the_model_itself) {
    write_base();
    Error e;
    GPT2 *plain = hf_load(base, true, &e),
         *m = with_lora("c_attn,c_proj,c_fc", 0.5f, small_limits(true));
    GPT2Limits limits = small_limits(false);
    gpt2_reserve(plain, &limits);
    for (int i = gpt2_own_tensors(m) + 1; i < gpt2_tensors(m); i += 2)
        fill_tensor(m, i, 0);  // as at the start of training
    for (int noisy = 0; noisy < 2; noisy++) {
        float a[N], b[N], ea[N], eb[N];
        gpt2_forward(plain, &batch, noisy ? &some_noise : NULL);
        gpt2_logprob(plain, target, 1, a, ea, NULL);
        gpt2_forward(m, &batch, noisy ? &some_noise : NULL);
        gpt2_logprob(m, target, 1, b, eb, NULL);
        ck_assert(!memcmp(a, b, sizeof a) && !memcmp(ea, eb, sizeof ea));
    }
    gpt2_backward(m, dlogp, NULL, NULL);
    for (int i = gpt2_own_tensors(m); i < gpt2_tensors(m); i++) {
        float *d = tensor_part(m, i, GPT2_GRADIENT);
        int nonzero = 0;
        for (size_t k = 0; k < gpt2_tensor(m, i)->n; k++) nonzero += d[k] != 0;
        if (i % 2 == gpt2_own_tensors(m) % 2)
            ck_assert_msg(!nonzero, "%s has a gradient while B is zero", gpt2_tensor(m, i)->name);
        else
            ck_assert_msg(nonzero * 2 > (int)gpt2_tensor(m, i)->n, "%s has none",
                          gpt2_tensor(m, i)->name);
        free(d);
    }
    for (int i = 0; i < gpt2_own_tensors(m); i++)
        ck_assert(!gpt2_tensor(m, i)->trains && !gpt2_gradient(m, i));
    gpt2_free(m);
    gpt2_free(plain);
}
END_TEST

START_TEST(a_is_uniform_and_b_is_zero) {
    write_base();
    GPT2 *m = with_lora("c_attn,mlp.c_proj", 0, small_limits(true)),
         *again = with_lora("c_attn,mlp.c_proj", 0, small_limits(true));
    for (int i = gpt2_own_tensors(m); i < gpt2_tensors(m); i += 2) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        float *a = tensor_part(m, i, GPT2_WEIGHT), *b = tensor_part(again, i, GPT2_WEIGHT);
        double bound = 1 / sqrt(t->shape[1]), most = 0;
        for (size_t k = 0; k < t->n; k++) most = fmax(most, fabs((double)a[k]));
        ck_assert_msg(most <= bound * 1.000001 && most > 0.8 * bound, "%s reaches %g of %g",
                      t->name, most, bound);
        ck_assert(!memcmp(a, b, sizeof(float) * t->n));
        free(a);
        free(b);
    }
    gpt2_free(m);
    gpt2_free(again);
}
END_TEST

/* W = base + s A^T B^T:  dA (r,in) = s (dW B)^T,  dB (out,r) = s dW^T A^T. dW is the whole model's.
 */
START_TEST(gradients_follow_from_those_of_the_merged_model) {
    write_base();
    Error e;
    for (int set = 0; set < TARGET_SETS; set++) {
        GPT2 *m = with_lora(target_sets[set], 0, small_limits(true)),
             *whole = hf_load(base, false, &e);
        GPT2Limits limits = small_limits(true);
        ck_assert_msg(!lora_merge(whole, m, &e), "%s", e.text);
        gpt2_reserve(whole, &limits);
        double a = loss_of(m, NULL), b = loss_of(whole, NULL);
        ck_assert_double_eq_tol(a, b, 1e-5);
        gpt2_backward(m, dlogp, NULL, NULL);
        gpt2_backward(whole, dlogp, NULL, NULL);
        for (int k = 0; k < added.n; k += 2) {
            const int own = gpt2_own_tensors(m), in = added.tensor[k].shape[1],
                      out = added.tensor[k + 1].shape[0];
            int i = 0;
            char name[128];
            snprintf(name, sizeof name, "%s",
                     added.tensor[k].name + strlen("base_model.model.transformer."));
            strcpy(strstr(name, "lora_A"), "weight");
            while (strcmp(gpt2_tensor(whole, i)->name, name)) i++;
            float *A = tensor_part(m, own + k, GPT2_WEIGHT),
                  *B = tensor_part(m, own + k + 1, GPT2_WEIGHT),
                  *dW = tensor_part(whole, i, GPT2_GRADIENT);
            float *dA = tensor_part(m, own + k, GPT2_GRADIENT),
                  *dB = tensor_part(m, own + k + 1, GPT2_GRADIENT);
            double squares[2] = {0}, errors[2] = {0};
            for (int j = 0; j < R; j++) {
                for (int x = 0; x < in; x++) {
                    double want = 0;
                    for (int y = 0; y < out; y++)
                        want += (double)lora.scale * (double)dW[x * out + y] * (double)B[y * R + j];
                    squares[0] += want * want;
                    errors[0] += pow((double)dA[j * in + x] - want, 2);
                }
                for (int y = 0; y < out; y++) {
                    double want = 0;
                    for (int x = 0; x < in; x++)
                        want +=
                            (double)lora.scale * (double)dW[x * out + y] * (double)A[j * in + x];
                    squares[1] += want * want;
                    errors[1] += pow((double)dB[y * R + j] - want, 2);
                }
            }
            for (int w = 0; w < 2; w++)  // both sides are float32 products of a few hundred terms
                ck_assert_msg(squares[w] > 0 && errors[w] < 1e-10 * squares[w],
                              "%s, %s of %s: relative error %g", target_sets[set], w ? "dB" : "dA",
                              name, sqrt(errors[w] / squares[w]));
            free(A);
            free(B);
            free(dW);
            free(dA);
            free(dB);
        }
        gpt2_free(m);
        gpt2_free(whole);
    }
}
END_TEST

/* Along a random direction in each tensor. float32's rounding, 1e-6 of the loss over a step of
 * 1e-2, allows about a thousandth. */
START_TEST(gradients_are_slopes_with_dropout) {
    write_base();
    GPT2 *m = with_lora("c_attn,c_proj,c_fc", 0.3f, small_limits(true));
    double plain = loss_of(m, NULL), noisy = loss_of(m, &some_noise);
    ck_assert(plain != noisy);
    loss_of(m, &some_noise);
    gpt2_backward(m, dlogp, NULL, NULL);
    for (int i = gpt2_own_tensors(m); i < gpt2_tensors(m); i++) {
        const size_t n = gpt2_tensor(m, i)->n;
        float *w = tensor_part(m, i, GPT2_WEIGHT), *g = tensor_part(m, i, GPT2_GRADIENT),
              *moved = (float *)xmalloc(sizeof *moved * n);
        double along = 0, norm = 0, loss[2];
        for (size_t k = 0; k < n; k++) norm += (double)g[k] * (double)g[k];
        norm = sqrt(norm);
        ck_assert_msg(norm > 0, "%s", gpt2_tensor(m, i)->name);
        for (int side = 0; side < 2; side++) {
            along = 0;
            for (size_t k = 0; k < n;
                 k++) {  // half the gradient's own direction, half any: neither vanishes
                double u =
                    (double)g[k] / norm + 0.5 * (double)normal(99, (uint32_t)k) / sqrt((double)n);
                along += u * (double)g[k];
                moved[k] = w[k] + (float)((side ? 1e-2 : -1e-2) * u);
            }
            gpt2_write(m, i, GPT2_WEIGHT, 0, n, moved);
            loss[side] = loss_of(m, &some_noise);
        }
        gpt2_write(m, i, GPT2_WEIGHT, 0, n, w);
        double slope = (loss[1] - loss[0]) / 2e-2;
        ck_assert_msg(fabs(slope - along) < 0.01 * fabs(along) + 2e-4, "%s: slope %g, gradient %g",
                      gpt2_tensor(m, i)->name, slope, along);
        free(w);
        free(g);
        free(moved);
    }
    gpt2_free(m);
}
END_TEST

static void ck_same_gradients(GPT2 *a, GPT2 *b, const char *what) {
    for (int i = gpt2_own_tensors(a); i < gpt2_tensors(a); i++) {
        float *x = tensor_part(a, i, GPT2_GRADIENT), *y = tensor_part(b, i, GPT2_GRADIENT);
        ck_assert_msg(!memcmp(x, y, sizeof(float) * gpt2_tensor(a, i)->n), "%s: %s differs", what,
                      gpt2_tensor(a, i)->name);
        free(x);
        free(y);
    }
}

START_TEST(gradient_checkpointing_and_threads_change_no_bit) {
    write_base();
    GPT2Limits limits = small_limits(true);
    GPT2 *m = with_lora("c_attn,c_proj,c_fc", 0.3f, limits);
    double loss = loss_of(m, &some_noise);
    gpt2_backward(m, dlogp, NULL, NULL);
    for (int k = 0; k < 4; k++) {
        limits.gradient_checkpointing = k % 2;
        omp_set_num_threads(1 + k / 2 * 2);
        GPT2 *other = with_lora("c_attn,c_proj,c_fc", 0.3f, limits);
        ck_assert(loss_of(other, &some_noise) == loss);
        gpt2_backward(other, dlogp, NULL, NULL);
        ck_same_gradients(m, other, k % 2 ? "checkpointing" : "threads");
        gpt2_free(other);
    }
    omp_set_num_threads(1);
    gpt2_free(m);
}
END_TEST

START_TEST(the_base_never_changes) {
    write_base();
    GPT2 *m = with_lora("c_attn,c_proj,c_fc", 0.3f, small_limits(true));
    float *before[64], *after;
    AdamW o = {.learning_rate = 0.1f,
               .beta1 = 0.9f,
               .beta2 = 0.99f,
               .epsilon = 1e-8f,
               .weight_decay = 0.1f};
    for (int i = 0; i < gpt2_tensors(m); i++) before[i] = tensor_part(m, i, GPT2_WEIGHT);
    for (int t = 1; t <= 3; t++) {
        loss_of(m, &some_noise);
        gpt2_backward(m, dlogp, NULL, NULL);
        ck_assert(isfinite(gpt2_step(m, &o, t)));
    }
    for (int i = 0; i < gpt2_tensors(m); i++) {
        after = tensor_part(m, i, GPT2_WEIGHT);
        bool same = !memcmp(before[i], after, sizeof(float) * gpt2_tensor(m, i)->n);
        ck_assert_msg(same == (i < gpt2_own_tensors(m)), "%s", gpt2_tensor(m, i)->name);
        free(before[i]);
        free(after);
    }
    gpt2_free(m);
}
END_TEST

START_TEST(merged_is_unmerged) {
    write_base();
    Error e;
    for (int set = 0; set < TARGET_SETS; set++) {  // square and not, one module and all
        GPT2 *m = with_lora(target_sets[set], 0.3f, small_limits(false)),
             *merged = hf_load(base, false, &e), *plain = hf_load(base, true, &e);
        GPT2Limits limits = small_limits(false);
        float logp[N], size;
        ck_assert_msg(!lora_merge(merged, m, &e), "%s", e.text);
        GPT2 *all[3] = {m, merged, plain};
        for (int i = 0; i < 3; i++) {
            if (i) gpt2_reserve(all[i], &limits);
            gpt2_forward(all[i], &batch, NULL);
            gpt2_logprob(all[i], target, 1, logp, NULL, NULL);
        }
        ck_assert(gpt2_logit_difference(m, merged, &size) < 1e-4f * size && size > 0.1f);
        ck_assert(gpt2_logit_difference(m, plain, NULL) >
                  1e-2f * size);  // it was no merge of nothing
        ck_assert(gpt2_logit_difference(m, m, NULL) == 0);
        for (int i = 0; i < 3; i++) gpt2_free(all[i]);
    }
    GPT2 *m = with_lora("c_fc", 0, small_limits(false)), *merged = hf_load(base, false, &e);
    added.first[0][TAP_WTE] = 0;  // a site without a matrix to add to
    ck_assert_int_eq(lora_merge(merged, m, &e), -1);
    ck_assert_msg(strstr(e.text, "outside the linear layers"), "%s", e.text);
    added.first[0][TAP_WTE] = -1;
    gpt2_write(m, gpt2_own_tensors(m), GPT2_WEIGHT, 5, 1, &(float){NAN});
    ck_assert_int_eq(lora_merge(merged, m, &e), -1);
    ck_assert_msg(strstr(e.text, "h.0.mlp.c_fc.weight") && strstr(e.text, "finite"), "%s", e.text);
    gpt2_free(m);
    gpt2_free(merged);
}
END_TEST

/* A model whose weights are the dequantised numbers has the same bits, forward and backward. */
START_TEST(four_bits_are_the_dequantised_model) {
    write_base();
    Error e;
    for (int twice = 0; twice < 2; twice++) {
        args.load_in_4bit = true;
        args.double_quant = twice;
        GPT2Limits limits = small_limits(true);
        GPT2 *m = with_lora("c_attn,c_proj,c_fc", 0.3f, limits), *plain = hf_load(base, true, &e),
             *copy = gpt2_create(&small, false);
        int changed = 0;
        for (int i = 0; i < gpt2_own_tensors(m); i++) {
            float *q = tensor_part(m, i, GPT2_WEIGHT), *w = tensor_part(plain, i, GPT2_WEIGHT);
            const GPT2Tensor *t = gpt2_tensor(m, i);
            const bool matrix = t->ndim == 2 && !strncmp(t->name, "h.", 2),
                       same = !memcmp(q, w, sizeof(float) * t->n);
            ck_assert_msg(same != matrix, "%s", t->name);
            changed += !same;
            gpt2_write(copy, i, GPT2_WEIGHT, 0, t->n, q);
            free(q);
            free(w);
        }
        ck_assert_int_eq(changed, 4 * L);
        args.load_in_4bit = false;
        added.format = FORMAT_FLOAT;
        technique_limits(&technique, &limits);
        gpt2_reserve(copy, &limits);
        for (int i = gpt2_own_tensors(m); i < gpt2_tensors(m); i++) {
            float *w = tensor_part(m, i, GPT2_WEIGHT);
            gpt2_write(copy, i, GPT2_WEIGHT, 0, gpt2_tensor(m, i)->n, w);
            free(w);
        }
        ck_assert(loss_of(m, &some_noise) == loss_of(copy, &some_noise));
        gpt2_backward(m, dlogp, NULL, NULL);
        gpt2_backward(copy, dlogp, NULL, NULL);
        ck_same_gradients(m, copy, "four bits");
        Sampler sampler = {
            .temperature = 1, .top_p = 1, .max_new_tokens = 5, .stop_token = -1, .seed = 2};
        Generation a, b;
        gpt2_generate(m, &batch, &sampler, &a, NULL, NULL);
        gpt2_generate(copy, &batch, &sampler, &b, NULL, NULL);
        ck_assert(!memcmp(a.tokens, b.tokens, sizeof(int) * 10) &&
                  !memcmp(a.logp, b.logp, sizeof(float) * 10));
        generation_free(&a);
        generation_free(&b);
        gpt2_free(m);
        gpt2_free(plain);
        gpt2_free(copy);
    }
}
END_TEST

/* Weights that could not stay in the file (halves, say) are the model's own until they are
 * quantised. */
START_TEST(copied_weights_are_quantised_like_mapped_ones) {
    write_base();
    Error e;
    GPT2 *mapped = hf_load(base, true, &e), *copied = gpt2_create(&small, true);
    GPT2Limits limits = small_limits(false);
    limits.format = FORMAT_NF4_DOUBLE;
    for (int i = 0; i < gpt2_tensors(mapped); i++) {
        float *w = tensor_part(mapped, i, GPT2_WEIGHT);
        ck_assert(!gpt2_map(copied, i, NULL));
        gpt2_write(copied, i, GPT2_WEIGHT, 0, gpt2_tensor(mapped, i)->n, w);
        free(w);
    }
    gpt2_reserve(mapped, &limits);
    gpt2_reserve(copied, &limits);
    ck_assert(loss_of(mapped, NULL) == loss_of(copied, NULL));
    GPT2Memory four = gpt2_memory(&small, &limits);
    limits.format = FORMAT_FLOAT;
    size_t matrices = 0, packed = 0;
    for (int i = 0; i < gpt2_tensors(mapped); i++) {
        const GPT2Tensor *t = gpt2_tensor(mapped, i);
        if (t->ndim != 2 || strncmp(t->name, "h.", 2)) continue;
        matrices += (t->n + 15) / 16 * 64;
        packed += (nf4_bytes(t->shape[0], t->shape[1], true) + 63) / 64 * 64;
    }
    ck_assert_uint_eq(gpt2_memory(&small, &limits).weights - four.weights, matrices - packed);
    gpt2_free(mapped);
    gpt2_free(copied);
}
END_TEST

START_TEST(a_decoded_token_has_the_bits_of_a_scored_one) {
    write_base();
    GPT2 *m = with_lora("c_attn,c_proj,c_fc", 0.3f, small_limits(true));
    Sampler sampler = {
        .temperature = 1, .top_p = 1, .max_new_tokens = 6, .stop_token = -1, .seed = 2};
    Generation g;
    const int one[2] = {0, 4};
    const Batch prompt = {.S = 1, .N = 4, .start = one, .tokens = token};
    gpt2_generate(m, &prompt, &sampler, &g, NULL, NULL);
    int text[10], next_token[10], whole[2] = {0, 9};
    float logp[10];
    for (int i = 0; i < 10; i++) text[i] = i < 4 ? token[i] : g.tokens[i - 4];
    for (int i = 0; i < 9; i++) next_token[i] = i < 3 ? -1 : text[i + 1];
    gpt2_forward(m, &(Batch){.S = 1, .N = 9, .start = whole, .tokens = text}, NULL);
    gpt2_logprob(m, next_token, 1, logp, NULL, NULL);
    ck_assert(!memcmp(logp + 3, g.logp, sizeof(float) * 6));
    generation_free(&g);
    gpt2_free(m);
}
END_TEST

START_TEST(untrained_means_that_every_b_is_zero) {
    write_base();
    GPT2 *m = with_lora("c_attn,c_fc", 0, small_limits(false));
    ck_assert(!technique_is_untrained(&technique, m));
    for (int i = gpt2_own_tensors(m) + 1; i < gpt2_tensors(m); i += 2) fill_tensor(m, i, 0);
    ck_assert(technique_is_untrained(&technique, m));
    gpt2_write(m, gpt2_tensors(m) - 1, GPT2_WEIGHT, gpt2_tensor(m, gpt2_tensors(m) - 1)->n - 1, 1,
               &(float){1e-30f});
    ck_assert(!technique_is_untrained(&technique, m));
    gpt2_free(m);
}
END_TEST

/* ---- the program ----------------------------------------------------------------------------- */

static int same(const char *a, const char *b) {
    return shell("cmp -s %s/%s %s/%s", work, a, work, b) == 0;
}
static int says(const char *name, const char *text) {
    return shell("grep -qF -- '%s' %s/%s.txt", text, work, name) == 0;
}

/* lora on a copy of the built-in model that nobody may write, and what it prints in work/NAME.txt.
 */
static int run_lora(const char *name, const char *more) {
    if (shell("test -d %s/tiny", work))
        ck_assert_int_eq(shell("mkdir %s/tiny && cp test/tiny/*.json test/tiny/merges.txt "
                               "test/tiny/model.safetensors %s/tiny && chmod -R a-w %s/tiny",
                               work, work, work),
                         0);
    return shell("OMP_NUM_THREADS=${THREADS-1} %s/lora --model %s/tiny %s >%s/%s.txt 2>&1", build(),
                 work, more, work, name);
}

static int train(const char *name, const char *more) {
    char flags[1024];
    snprintf(flags, sizeof flags,
             "--data test/tiny/domain.jsonl --eval test/tiny/domain-eval.jsonl --eval_samples 2 "
             "--max_new_tokens 8 --logging_steps 3 "
             "--warmup_steps 2 --learning_rate 1e-2 --per_device_train_batch_size 3 "
             "--gradient_accumulation_steps 1 --output %s/%s %s",
             work, name, more);
    return run_lora(name, flags);
}

START_TEST(it_trains_and_leaves_the_base_alone) {
    ck_assert_int_eq(train("first", "--max_steps 12 --save_steps 0"), 0);
    ck_assert(says("first", "parameters: 98,304 of 759,040 are trained, 12.9511 %"));
    ck_assert_int_eq(shell("cmp -s test/tiny/model.safetensors %s/tiny/model.safetensors", work),
                     0);
    ck_assert_int_ne(shell("test -e %s/first/model.safetensors", work), 0);
    ck_assert_int_eq(shell("grep -q '\"peft_type\": \"LORA\"' %s/first/adapter_config.json", work),
                     0);
    Error e;
    char path[128];
    snprintf(path, sizeof path, "%s/first/adapter_model.safetensors", work);
    SafeTensors *st = st_open(path, &e);
    ck_assert_msg(st != NULL, "%s", e.text);
    ck_assert_int_eq(st_count(st), 3 * 4 * 2);
    const STTensor *t = st_find(st, "base_model.model.transformer.h.2.mlp.c_proj.lora_A.weight");
    ck_assert(t && t->shape[0] == 16 && t->shape[1] == 512);
    st_close(st);
    // the held-out loss has gone down, and is what the saved adapter has
    ck_assert_int_eq(
        shell("test $(sed -n 's/.*held-out, before  loss \\([0-9]*\\)\\..*/\\1/p' %s/first.txt | "
              "head -1) -gt "
              "$(sed -n 's/.*held-out, after   loss \\([0-9]*\\)\\..*/\\1/p' %s/first.txt)",
              work, work),
        0);
    char more[256];
    snprintf(more, sizeof more, "--max_steps 0 --adapter %s/first", work);
    ck_assert_int_eq(train("evaluate", more), 0);
    ck_assert_int_eq(
        shell("test \"$(grep -o 'held-out, after.*' %s/first.txt | grep -o 'loss.*')\" = \"$(grep "
              "-o 'held-out, before.*' %s/evaluate.txt | grep -o 'loss.*')\"",
              work, work),
        0);
}
END_TEST

START_TEST(a_resumed_run_has_the_bits_of_an_uninterrupted_one) {
    for (int four = 0; four < 2; four++) {
        char flags[512];
        snprintf(
            flags, sizeof flags,
            "--max_steps 6 --dropout 0.1 --save_steps 3 --save_total_limit 0 --r 4 --keep_moments "
            "--target_modules c_proj,c_attn %s",
            four ? "--load_in_4bit" : "");
        ck_assert_int_eq(shell("rm -rf %s/whole %s/cut", work, work), 0);
        ck_assert_int_eq(train("whole", flags), 0);
        ck_assert_int_eq(shell("cp -r %s/whole %s/cut && rm -r %s/cut/checkpoint-6 "
                               "%s/cut/adapter_model.safetensors",
                               work, work, work, work),
                         0);
        strcat(flags, " --resume");
        ck_assert_int_eq(train("cut", flags), 0);
        ck_assert(same("whole/adapter_model.safetensors", "cut/adapter_model.safetensors"));
        ck_assert(same("whole/adapter_config.json", "cut/adapter_config.json"));
        ck_assert(
            same("whole/checkpoint-6/state.safetensors", "cut/checkpoint-6/state.safetensors"));
        ck_assert(same("whole/log.jsonl", "cut/log.jsonl"));
    }
    ck_assert_int_eq(train("cut",
                           "--max_steps 6 --dropout 0.1 --save_steps 3 --save_total_limit 0 --r 8 "
                           "--target_modules c_proj,c_attn --load_in_4bit --resume"),
                     2);
    ck_assert(says("cut", "--r"));
}
END_TEST

START_TEST(threads_change_no_bit) {
    for (int four = 0; four < 2; four++) {
        const char *flags = four ? "--max_steps 2 --load_in_4bit" : "--max_steps 2";
        ck_assert_int_eq(shell("rm -rf %s/one %s/three", work, work), 0);
        setenv("THREADS", "1", 1);
        ck_assert_int_eq(train("one", flags), 0);
        setenv("THREADS", "3", 1);
        ck_assert_int_eq(train("three", flags), 0);
        unsetenv("THREADS");
        ck_assert(same("one/adapter_model.safetensors", "three/adapter_model.safetensors"));
    }
}
END_TEST

/* A signal in the last step stops nothing: the result is complete, and that includes --merge. */
START_TEST(a_signal_in_the_last_step_does_not_skip_the_merging) {
    const int status = shell(
        "(%s/lora --model test/tiny --data test/tiny/domain.jsonl --eval "
        "test/tiny/domain-eval.jsonl --eval_samples 0 --warmup_steps 0 --max_steps 2 "
        "--gradient_accumulation_steps 16 --logging_steps 1 --output %s/signal --merge "
        "%s/signal-merged >%s/signal.txt 2>&1 & p=$!; while ! grep -q 'step 1/2' %s/signal.txt && "
        "kill -0 $p; do sleep 0.02; done; kill -TERM $p; wait $p)",
        build(), work, work, work, work);
    ck_assert_msg(status == 143 || status == 0, "it ended with %d", status);
    if (status == 0)  // 143: the signal came before the last step
        ck_assert_int_eq(shell("test -e %s/signal-merged/model.safetensors", work), 0);
}
END_TEST

START_TEST(it_merges_and_answers) {
    char more[512];
    ck_assert_int_eq(shell("rm -rf %s/first", work), 0);
    ck_assert_int_eq(train("first", "--max_steps 12 --save_steps 0"), 0);
    snprintf(more, sizeof more,
             "--adapter %s/first --merge %s/merged --verify --prompt 'What is the job of Nora?' "
             "--max_new_tokens 12 --temperature 0",
             work, work);
    ck_assert_int_eq(run_lora("merge", more), 0);
    ck_assert(says("merge",
                   "verified on 128 tokens: the logits of the merged and the unmerged model "
                   "differ by at most"));
    // the merged model, without a LoRA, has the adapter's held-out loss: full_ft evaluates it
    ck_assert_int_eq(
        shell("OMP_NUM_THREADS=1 %s/full_ft --model %s/merged --data test/tiny/domain.jsonl --eval "
              "test/tiny/domain-eval.jsonl --max_steps 0 --eval_samples 0 >%s/whole.txt 2>&1",
              build(), work, work),
        0);
    ck_assert_int_eq(
        shell("test \"$(grep -o 'held-out, after.*' %s/first.txt | grep -o 'loss.*')\" = \"$(grep "
              "-o 'held-out, before.*' %s/whole.txt | grep -o 'loss.*')\"",
              work, work),
        0);
    // what is there is not overwritten, and the base least of all
    ck_assert_int_eq(run_lora("merge", more), 2);
    ck_assert(says("merge", "already holds a model"));
    snprintf(more, sizeof more, "--adapter %s/first --merge %s/../%s/tiny --overwrite_output_dir",
             work, work, strrchr(work, '/') + 1);
    ck_assert_int_eq(run_lora("merge", more), 2);
    ck_assert(says("merge", "is never written"));
    snprintf(more, sizeof more, "--adapter %s/first --load_in_4bit --merge %s/merged4 --verify",
             work, work);
    ck_assert_int_eq(run_lora("merge4", more), 0);
    ck_assert(says("merge4", "not to the four-bit weights") &&
              says("merge4", "of the four-bit model with the adapter differ by at most"));
    ck_assert(same("merged/model.safetensors", "merged4/model.safetensors"));
}
END_TEST

START_TEST(a_wrong_adapter_is_refused) {
    char more[512];
    ck_assert_int_eq(shell("rm -rf %s/first %s/bad", work, work), 0);
    ck_assert_int_eq(train("first", "--max_steps 4 --save_steps 0"), 0);
    static const struct {
        const char *spoil, *says[2];
    } bad[] = {
        {"sed -i 's/\"r\": 16/\"r\": 8/' bad/adapter_config.json",
         {"has shape [16,128], expected [8,128]", "adapter_model.safetensors"}},
        {"sed -i 's/\"c_fc\",//' bad/adapter_config.json",
         {"mlp.c_fc.lora_A.weight is not one of the 18", "adapter_model.safetensors"}},
        {"sed -i 's/\"c_fc\",/\"c_fc\", \"q_proj\",/' bad/adapter_config.json",
         {"\"q_proj\" is the end of no linear layer", "bad"}},
        {"sed -i 's/\"r\": 16/\"r\": 16, \"use_dora\": true/' bad/adapter_config.json",
         {"use_dora is true", "adapter_config.json"}},
        {"sed -i 's/\"r\": 16/\"r\": 16, \"rank_pattern\": {\"c_fc\": 2}/' bad/adapter_config.json",
         {"rank_pattern is", "adapter_config.json"}},
        {"sed -i 's/h.1.mlp.c_fc.lora_B/h.1.mlp.c_fc.lora_X/' bad/adapter_model.safetensors",
         {"h.1.mlp.c_fc.lora_B.weight is missing", "[512,16]"}},
        {"truncate -s -9 bad/adapter_model.safetensors",
         {"cut short", "adapter_model.safetensors"}},
        {"rm bad/adapter_model.safetensors", {"cannot open", "adapter_model.safetensors"}},
        {"rm bad/adapter_config.json", {"does not exist", "adapter_config.json"}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_int_eq(shell("cd %s && rm -rf bad && cp -r first bad && %s", work, bad[i].spoil),
                         0);
        snprintf(more, sizeof more, "--adapter %s/bad --prompt x", work);
        ck_assert_msg(run_lora("bad", more) == 2, "%s", bad[i].spoil);
        ck_assert_msg(says("bad", bad[i].says[0]) && says("bad", bad[i].says[1]), "%s",
                      bad[i].spoil);
    }
    // of another model: one with a layer less
    ck_assert_int_eq(shell("cd %s && rm -rf bad && cp -r first bad && sed -i "
                           "'s/h.2.attn/h.7.attn/g' bad/adapter_model.safetensors",
                           work),
                     0);
    ck_assert_int_eq(run_lora("bad", more), 2);
    ck_assert(says("bad", "h.2.attn.c_attn.lora_A.weight is missing"));
    // never trained
    ck_assert_int_eq(shell("rm -rf %s/zero", work), 0);
    ck_assert_int_eq(train("zero", "--max_steps 1 --warmup_steps 5 --save_steps 0"),
                     0);  // the first step of a warm-up has rate 0
    snprintf(more, sizeof more, "--adapter %s/zero --prompt x --max_new_tokens 3", work);
    ck_assert_int_eq(run_lora("zero", more), 2);
    ck_assert(says("zero", "every B is zero"));
    strcat(more, " --allow_untrained");
    ck_assert_int_eq(run_lora("zero", more), 0);
    snprintf(more, sizeof more, "--max_steps 2 --adapter %s/zero",
             work);  // to train on from it is nothing unusual
    ck_assert_int_eq(train("on", more), 0);
}
END_TEST

START_TEST(bad_flags_end_with_2_and_leave_no_output) {
    const char *bad[] = {
        "--r 0",       "--target_modules nothing", "--target_modules ''", "--lora_dropout 1",
        "--dropout 2", "--model /nowhere",         "--adapter /nowhere"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_msg(train("none", bad[i]) == 2, "%s", bad[i]);
    ck_assert_int_eq(run_lora("none", "--prompt x"), 2);
    ck_assert(says("none", "--adapter"));
    ck_assert_int_ne(shell("test -e %s/none/adapter_model.safetensors", work), 0);
}
END_TEST

START_TEST(a_dry_run_shows_what_trains_and_what_the_weights_take) {
    ck_assert_int_eq(train("dry", "--dry_run --load_in_4bit --target_modules mlp.c_proj"), 0);
    ck_assert_int_ne(shell("test -e %s/dry", work), 0);
    ck_assert(
        says("dry", "transformer.h.*.mlp.c_proj    3 of 3 layers   A (16,512)   B (128,16)") &&
        !says("dry", "transformer.h.*.attn"));
    ck_assert(says("dry", "NF4, doubly quantised, 4.1"));
}
END_TEST

int main(void) {
    if (!mkdtemp(work)) return 1;
    omp_set_num_threads(1);
    device_init();
    set_defaults();
    const TTest *const tests[] = {
        the_loss_is_the_mean_over_all_scored_tokens,
        names_match_as_in_peft,
        counts_are_the_known_ones,
        names_and_shapes_are_those_of_peft,
        the_defaults_are_the_published_ones,
        it_starts_from_the_model_itself,
        a_is_uniform_and_b_is_zero,
        gradients_follow_from_those_of_the_merged_model,
        gradients_are_slopes_with_dropout,
        gradient_checkpointing_and_threads_change_no_bit,
        the_base_never_changes,
        merged_is_unmerged,
        four_bits_are_the_dequantised_model,
        copied_weights_are_quantised_like_mapped_ones,
        a_decoded_token_has_the_bits_of_a_scored_one,
        untrained_means_that_every_b_is_zero,
        it_trains_and_leaves_the_base_alone,
        a_resumed_run_has_the_bits_of_an_uninterrupted_one,
        threads_change_no_bit,
        a_signal_in_the_last_step_does_not_skip_the_merging,
        it_merges_and_answers,
        a_wrong_adapter_is_refused,
        bad_flags_end_with_2_and_leave_no_output,
        a_dry_run_shows_what_trains_and_what_the_weights_take,
    };
    int failed = run_tests("lora", NULL, tests, sizeof tests / sizeof *tests);
    added_free(&added);
    if (!failed) shell("chmod -R u+w %s && rm -rf %s", work, work);
    return failed != 0;
}
