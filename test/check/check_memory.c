/*
 * check_memory.c - memory.c against its contract, memory.h, and the errors of gpt2.c, generate.c
 * and memory.c.
 *
 * An error ends the program, and the peak of memory is that of a whole process. So these tests
 * start this program again with an argument; see Children.
 */
#include "gpt2_fixture.h"

#include <sys/wait.h>
#include <unistd.h>

/* ---- Tensors, mapping, initial weights, gpt2_memory ------------------------------------------ */

START_TEST(tensors_have_the_shapes_of_the_files) {
    const GPT2Config *c = &MIDDLING->config;
    const struct {
        const char *name;
        int ndim, rows, columns;
    } want[] = {
        {"wte.weight", 2, 37, 20},
        {"wpe.weight", 2, 24, 20},
        {"h.1.ln_1.weight", 1, 20, 1},
        {"h.1.ln_1.bias", 1, 20, 1},
        {"h.1.attn.c_attn.weight", 2, 20, 60},
        {"h.1.attn.c_attn.bias", 1, 60, 1},
        {"h.1.attn.c_proj.weight", 2, 20, 20},
        {"h.1.attn.c_proj.bias", 1, 20, 1},
        {"h.1.ln_2.weight", 1, 20, 1},
        {"h.1.ln_2.bias", 1, 20, 1},
        {"h.1.mlp.c_fc.weight", 2, 20, 33},
        {"h.1.mlp.c_fc.bias", 1, 33, 1},
        {"h.1.mlp.c_proj.weight", 2, 33, 20},
        {"h.1.mlp.c_proj.bias", 1, 20, 1},
        {"ln_f.weight", 1, 20, 1},
        {"ln_f.bias", 1, 20, 1},
    };
    for (int train = 0; train <= 1; train++) {
        GPT2 *m = model(c, (GPT2Limits){.tokens = 1, .sequences = 1, .scored = 1, .train = train});
        ck_assert(!memcmp(gpt2_config(m), c, sizeof *c));
        ck_assert_int_eq(gpt2_tensors(m), 2 + 2 * 12 + 2);
        for (int k = 0; k < LENGTH(want); k++) {
            const GPT2Tensor *t = gpt2_tensor(m, k < 2 ? k : k + 12);  // skips layer 0
            ck_assert_str_eq(t->name, want[k].name);
            ck_assert_int_eq(t->ndim, want[k].ndim);
            ck_assert_int_eq(t->shape[0], want[k].rows);
            if (t->ndim == 2) ck_assert_int_eq(t->shape[1], want[k].columns);
            ck_assert_uint_eq(t->n, (size_t)want[k].rows * (size_t)want[k].columns);
            ck_assert_int_eq(t->trains, train);
        }
    }
}
END_TEST

START_TEST(a_part_of_a_tensor_is_read_and_written) {
    GPT2 *m = model(&MIDDLING->config,
                    (GPT2Limits){.tokens = 1, .sequences = 1, .scored = 1, .train = true});
    const GPT2Part kinds[] = {GPT2_WEIGHT, GPT2_GRADIENT, GPT2_MOMENT1, GPT2_MOMENT2};
    // no two parts of tensors share memory
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < gpt2_tensors(m); i++) {
            float *x = floats(gpt2_tensor(m, i)->n);
            for (size_t j = 0; j < gpt2_tensor(m, i)->n; j++)
                x[j] = (float)(k * 1000000 + i * 10000) + (float)j;
            gpt2_write(m, i, kinds[k], 0, gpt2_tensor(m, i)->n, x);
        }
    gpt2_write(m, 4, GPT2_MOMENT1, 100, 3, (float[]){-1, -2, -3});
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < gpt2_tensors(m); i++) {
            const float *x = read_tensor(m, i, kinds[k]);
            for (size_t j = 0; j < gpt2_tensor(m, i)->n; j++) {
                bool piece = kinds[k] == GPT2_MOMENT1 && i == 4 && j >= 100 && j < 103;
                if (x[j] != (piece ? 99 - (float)j : (float)(k * 1000000 + i * 10000) + (float)j))
                    ck_abort_msg("part %d of tensor %d: element %zu", k, i, j);
            }
        }
    float piece[4];
    gpt2_read(m, 4, GPT2_MOMENT1, 99, 4, piece);
    ck_bits(piece, ((float[]){2040099, -1, -2, -3}), 4);
}
END_TEST

static int released;
static void count_release(void *context) { released += *(int *)context; }

START_TEST(a_mapped_model_gives_the_same_bits) {
    Text *t = text_of(MIDDLING), *p = prompts();
    const GPT2Limits limits = {
        .tokens = 64, .sequences = PROMPTS, .scored = 64, .slots = 2, .positions = 24};
    GPT2 *own = model(&MIDDLING->config, limits), *mapped = gpt2_create(&MIDDLING->config, true);
    float *file = read_all(own, GPT2_WEIGHT),
          *kept = memcpy(floats(elements(own)), file, elements(own) * sizeof *kept), *w = file;
    for (int i = 0; i < gpt2_tensors(mapped); w += gpt2_tensor(mapped, i++)->n)
        map_tensor(mapped, i, w);
    gpt2_at_free(mapped, count_release, &(int){1});
    gpt2_reserve(mapped, &limits);
    ck_assert_ptr_eq(mapped->weights, NULL);  // there is no second copy
    ck_bits(read_all(mapped, GPT2_WEIGHT), file, elements(own));
    ck_same_scores(score(mapped, t, NULL), score(own, t, NULL), (size_t)t->batch.N);
    ck_complaint(compare_texts(generate(mapped, &p->batch, plain), generate(own, &p->batch, plain),
                               PROMPTS));
    released = 0;
    gpt2_free(mapped);
    ck_assert_int_eq(released, 1);
    ck_bits(file, kept, elements(own));  // the mapping was only read
}
END_TEST

START_TEST(unaligned_weights_are_copied) {
    Text *t = text_of(MIDDLING);
    const GPT2Limits limits = fit(t, false, false);
    GPT2 *own = model(&MIDDLING->config, limits), *mapped = gpt2_create(&MIDDLING->config, true);
    const float *all = read_all(own, GPT2_WEIGHT), *w = all;
    char *file = zeros(elements(own) + 1, sizeof(float));
    for (int i = 0; i < gpt2_tensors(mapped); w += gpt2_tensor(mapped, i++)->n) {
        const GPT2Tensor *x = gpt2_tensor(mapped, i);
        char *unaligned = file + 1 + (size_t)(w - all) * sizeof *w;
        if (i % 2) memcpy(unaligned, w, x->n * sizeof *w);
        if (i % 2)
            ck_assert(!gpt2_map(mapped, i, unaligned));
        else
            map_tensor(mapped, i, w);
        if (i % 2) gpt2_write(mapped, i, GPT2_WEIGHT, 0, x->n, w);
    }
    memset(file, 0xff, (elements(own) + 1) * sizeof(float));  // no longer needed
    gpt2_at_free(mapped, count_release, &(int){1});
    gpt2_reserve(mapped, &limits);
    ck_same_scores(score(mapped, t, NULL), score(own, t, NULL), (size_t)t->batch.N);
    released = 0;
    gpt2_free(mapped);
    ck_assert_int_eq(released, 1);
}
END_TEST

START_TEST(initial_weights_have_the_documented_distribution) {
    // wte and c_fc are longer than one block of random numbers
    const GPT2Config c = CONFIG(100, 1100, 2, 2, 160, 640, 1e-5f);
    GPT2 *m = adopt(gpt2_create(&c, false)), *again = adopt(gpt2_create(&c, false)),
         *other = adopt(gpt2_create(&c, false));
    gpt2_init_weights(m, 42);
    omp_set_num_threads(1);
    gpt2_init_weights(again, 42);
    gpt2_init_weights(other, 43);
    ck_bits(read_all(again, GPT2_WEIGHT), read_all(m, GPT2_WEIGHT), elements(m));
    const double *longest = widen(read_tensor(m, 0, GPT2_WEIGHT), gpt2_tensor(m, 0)->n);
    for (int i = 0; i < gpt2_tensors(m); i++) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        AT("%s", t->name);
        const double *w = widen(read_tensor(m, i, GPT2_WEIGHT), t->n),
                     *x = widen(read_tensor(other, i, GPT2_WEIGHT), t->n), n = (double)t->n;
        if (t->ndim == 1) {
            for (size_t j = 0; j < t->n; j++)
                if (w[j] != (is_gain(t->name) ? 1 : 0))
                    ck_abort_msg("%s[%zu] is %g", where, j, w[j]);
            continue;
        }
        double deviation = strstr(t->name, "c_proj") ? 0.02 / sqrt(2 * 2) : 0.02, sum = 0,
               fourth = 0, seeds = 0, rows = 0, tensors = 0;
        for (size_t j = 0; j < t->n; j++) {
            double z = w[j] / deviation;
            sum += z;
            fourth += z * z * z * z;
            seeds += z * x[j] / deviation;
            rows += j ? z * w[j - 1] / deviation : 0;
            tensors += z * longest[j % 65536] /
                       0.02;  // the same numbers in another tensor, or in the next 65,536
        }
        if (i == 0)  // compared with itself, so only from 65,536 on
            for (size_t j = 0; j < 65536; j++) tensors -= w[j] * w[j] / (0.02 * 0.02);
        // five standard errors of each. The variance of a normal number and of the product of two
        // is 1, that of its square 2, that of its fourth power 96.
        ck_assert_double_eq_tol(sum / n, 0, 5 / sqrt(n));
        ck_assert_double_eq_tol(norm(w, t->n) * norm(w, t->n) / (deviation * deviation) / n, 1,
                                5 * sqrt(2 / n));
        ck_assert_double_eq_tol(fourth / n, 3, 5 * sqrt(96 / n));
        ck_assert_double_eq_tol(seeds / n, 0, 5 / sqrt(n));
        ck_assert_double_eq_tol(rows / n, 0, 5 / sqrt(n));
        ck_assert_double_eq_tol(tensors / n, 0, 5 / sqrt(n));
    }
}
END_TEST

START_TEST(memory_is_what_gpt2_memory_gives) {
    FOR_SHAPES(s)
    for (int k = 0; k < 8; k++) {
        const GPT2Limits limits = {.tokens = 40 + k,
                                   .sequences = 5,
                                   .scored = 3 * k,
                                   .train = k & 1,
                                   .gradient_checkpointing = k & 2,
                                   .slots = k & 4 ? 6 : 0,
                                   .positions = k & 4 ? 70 : 0};
        GPT2Memory told = gpt2_memory(&s->config, &limits);
        GPT2 *m = model(&s->config, limits);
        ck_assert(!memcmp(&told, &m->memory, sizeof told));
        ck_assert_uint_eq(told.total, told.weights + told.gradients + told.moments +
                                          told.activations + told.logits + told.cache +
                                          told.workspace);
        // lower bounds
        const GPT2Config *c = &s->config;
        size_t C = (size_t)c->n_embd, N = (size_t)limits.tokens, n = elements(m),
               layers = limits.train && !limits.gradient_checkpointing ? (size_t)c->n_layer : 1;
        ck_assert_uint_ge(told.weights, n * sizeof(real));
        ck_assert_uint_ge(told.gradients, limits.train ? n * sizeof(float) : 0);
        ck_assert_uint_ge(told.moments, limits.train ? 2 * n * sizeof(float) : 0);
        ck_assert_uint_ge(told.activations,
                          layers * N * (5 * C + (size_t)c->n_inner) * sizeof(real));
        ck_assert_uint_ge(told.logits,
                          (size_t)limits.scored * (size_t)c->vocab_size * sizeof(real));
        ck_assert_uint_ge(told.cache, (size_t)limits.slots * (size_t)limits.positions * 2 * C *
                                          (size_t)c->n_layer * sizeof(real));
        if (!limits.train) ck_assert_uint_eq(told.gradients + told.moments, 0);
        if (!limits.slots) ck_assert_uint_eq(told.cache, 0);
    }
}
END_TEST

/* ---- Children -------------------------------------------------------------------------------- */

/* Tests that end a process or measure one start this program again, with an argument. */

/* Runs this program with an argument. Writes its stdout and stderr to out. Returns the exit status.
 */
static int child(const char *argument, char *out, size_t size) {
    char self[512] = {0}, command[600];
    ck_assert_int_gt(readlink("/proc/self/exe", self, sizeof self - 1), 0);
    snprintf(command, sizeof command, "'%s' '%s' 2>&1", self, argument);
    FILE *f = popen(command, "r");
    ck_assert_ptr_nonnull(f);
    size_t n = fread(out, 1, size - 1, f);
    out[n] = 0;
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

typedef struct {
    const char *name, *says;
    int status;  // 2: wrong input; 1: the run failed, or there is an error in the program
    void (*run)(GPT2 *m);
} Refusal;

static const GPT2Config small = CONFIG(4, 5, 1, 1, 8, 32, 1e-5f);
static const GPT2Limits small_limits = {
    .tokens = 8, .sequences = 2, .scored = 2, .slots = 1, .positions = 4};

static void forward_of(GPT2 *m, int n, int token) {
    int tokens[16];
    for (int i = 0; i < 16; i++) tokens[i] = token;
    gpt2_forward(m, &(Batch){.S = 1, .N = n, .start = (int[]){0, n}, .tokens = tokens}, NULL);
}

static void logprob_of(GPT2 *m, int target) {
    forward_of(m, 3, 0);
    float logp[3];
    gpt2_logprob(m, (int[]){target, target, target}, 1, logp, NULL, NULL);
}

static void generate_from(GPT2 *m, int n, int token) {
    Generation g;
    gpt2_generate(m,
                  &(Batch){.S = 1,
                           .N = n,
                           .start = (int[]){0, n},
                           .tokens = (int[]){token, token, token, token, token}},
                  &greedy, &g, NULL, NULL);
}

static GPT2 *reserved(bool mapped, GPT2Limits limits) {
    GPT2 *m = gpt2_create(&small, mapped);
    gpt2_reserve(m, &limits);
    return m;
}

static void too_large_token(GPT2 *m) { forward_of(m, 3, 5); }
static void negative_token(GPT2 *m) { forward_of(m, 3, -1); }
static void too_long_sequence(GPT2 *m) { forward_of(m, 5, 0); }
static void too_many_tokens(GPT2 *m) { forward_of(m, 9, 0); }
static void no_tokens(GPT2 *m) { forward_of(m, 0, 0); }
static void too_many_sequences(GPT2 *m) {
    gpt2_forward(m,
                 &(Batch){.S = 3, .N = 3, .start = (int[]){0, 1, 2, 3}, .tokens = (int[]){0, 0, 0}},
                 NULL);
}
static void too_large_target(GPT2 *m) { logprob_of(m, 5); }
static void too_many_targets(GPT2 *m) { logprob_of(m, 1); }
static void too_large_prompt_token(GPT2 *m) { generate_from(m, 2, 5); }
static void negative_prompt_token(GPT2 *m) { generate_from(m, 2, -7); }
static void too_long_prompt(GPT2 *m) { generate_from(m, 5, 0); }
static void empty_prompt(GPT2 *m) { generate_from(m, 0, 0); }
static void no_slots(GPT2 *m) {
    (void)m;
    generate_from(reserved(false, (GPT2Limits){.tokens = 8, .sequences = 1, .scored = 1}), 2, 0);
}
static void more_slots_than_tokens(GPT2 *m) {
    (void)m;
    generate_from(
        reserved(false, (GPT2Limits){.tokens = 2, .sequences = 1, .slots = 3, .positions = 4}), 2,
        0);
}
static void damaged_weights(GPT2 *m) {
    gpt2_write(m, 0, GPT2_WEIGHT, 0, 1, &(float){NAN});
    generate_from(m, 2, 0);
}
static void reserved_twice(GPT2 *m) { gpt2_reserve(m, &small_limits); }
static void mapped_and_trained(GPT2 *m) {
    (void)m;
    reserved(true, (GPT2Limits){.tokens = 8, .sequences = 1, .train = true});
}
static void backward_without_training(GPT2 *m) {
    forward_of(m, 3, 0);
    gpt2_backward(m, NULL, NULL, NULL);
}
/* A model that can train, after a forward pass. */
static GPT2 *forward_to_train(void) {
    GPT2 *m = reserved(
        false,
        (GPT2Limits){
            .tokens = 8, .sequences = 1, .scored = 3, .slots = 1, .positions = 4, .train = true});
    logprob_of(m, 1);
    return m;
}
static void entropy_not_asked_for(GPT2 *m) {
    (void)m;
    gpt2_backward(forward_to_train(), NULL, (float[]){1, 1, 1}, NULL);
}
static void backward_twice(GPT2 *m) {
    m = forward_to_train();
    for (int i = 0; i < 2; i++) gpt2_backward(m, (float[]){1, 1, 1}, NULL, NULL);
}
static void logprob_after_backward(GPT2 *m) {
    m = forward_to_train();
    float logp[3];
    gpt2_backward(m, (float[]){1, 1, 1}, NULL, NULL);
    gpt2_logprob(m, (int[]){1, 1, 1}, 1, logp, NULL, NULL);
}
static void backward_after_decoding(GPT2 *m) {
    m = forward_to_train();
    generate_from(m, 2, 0);
    gpt2_backward(m, (float[]){1, 1, 1}, NULL, NULL);
}
static void too_large_a_run(GPT2 *m) {
    (void)m;
    reserved(false, (GPT2Limits){.tokens = 2000000000, .sequences = 1, .scored = 1, .train = true});
}
static void too_large_a_model(GPT2 *m) {
    (void)m;
    GPT2Config huge = small;
    huge.n_layer = 4000;
    huge.n_embd = 32768;
    huge.n_inner = 131072;
    gpt2_create(&huge, false);
}

static const Refusal refusals[] = {
    {"too large a token", "token 5 does not exist in a model with a vocabulary of 5", 2,
     too_large_token},
    {"a negative token", "token -1 does not exist", 2, negative_token},
    {"too long a sequence", "a sequence of 5 tokens, but the model has 4 positions", 2,
     too_long_sequence},
    {"too many tokens", "a batch of 1 sequences and 9 tokens", 1, too_many_tokens},
    {"no tokens", "a batch of 1 sequences and 0 tokens", 1, no_tokens},
    {"too many sequences", "a batch of 3 sequences and 3 tokens", 1, too_many_sequences},
    {"too large a target", "target 5 does not exist", 2, too_large_target},
    {"too many targets", "more than 2 scored tokens", 1, too_many_targets},
    {"too large a token in a prompt", "token 5 does not exist", 2, too_large_prompt_token},
    {"a negative token in a prompt", "token -7 does not exist", 2, negative_prompt_token},
    {"too long a prompt", "a prompt of 5 tokens, but it must have 1 to 4", 2, too_long_prompt},
    {"an empty prompt", "a prompt of 0 tokens", 2, empty_prompt},
    {"no slots", "0 slots and 8 tokens", 1, no_slots},
    {"more slots than tokens", "3 slots and 2 tokens", 1, more_slots_than_tokens},
    {"damaged weights", "not finite", 1, damaged_weights},
    {"reserved twice", "once", 1, reserved_twice},
    {"mapped and trained", "cannot train", 1, mapped_and_trained},
    {"backward without training", "reserved without training", 1, backward_without_training},
    {"entropy not asked for", "gpt2_logprob did not compute the entropy", 1, entropy_not_asked_for},
    {"backward twice", "gpt2_backward: first call gpt2_forward", 1, backward_twice},
    {"logprob after backward", "gpt2_logprob: first call gpt2_forward", 1, logprob_after_backward},
    {"backward after decoding", "gpt2_backward: first call gpt2_forward", 1,
     backward_after_decoding},
    {"too large a run", "MB are free", 1, too_large_a_run},
    {"too large a model", "the model needs", 1, too_large_a_model},
};

START_TEST(refusals_say_why_and_end_the_program) {
    const Refusal *r = &refusals[_i];
    char out[4096];
    int status = child(r->name, out, sizeof out);
    ck_assert_msg(status == r->status && strstr(out, r->says) && !strncmp(out, "error: ", 7),
                  "%s: status %d, %s", r->name, status, out);
}
END_TEST

/* Resident memory of this process in bytes, by its name in /proc: VmRSS is the current value, VmHWM
   the peak. */
static double resident(const char *name) {
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    double kb = 0;
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, name, strlen(name))) kb = atof(line + strlen(name) + 1);
    if (f) fclose(f);
    return kb * 1024;
}

/* Runs a training step of a model that is large compared to code and libraries. Prints the bytes
   that gpt2_memory gives, and how much the process grew. */
static int measure_memory(bool checkpointing) {
    const GPT2Config c = CONFIG(128, 5000, 8, 4, 256, 1024, 1e-5f);
    const GPT2Limits limits = {.tokens = 512,
                               .sequences = 4,
                               .scored = 512,
                               .train = true,
                               .gradient_checkpointing = checkpointing};
    int start[] = {0, 128, 256, 384, 512}, tokens[512], target[512];
    static float logp[512], dlogp[512];
    for (int i = 0; i < 512; i++) {
        tokens[i] = i % 5000;
        target[i] = (i + 1) % 5000;
        dlogp[i] = -1.0f / 512;
    }
    device_init();
    // the workspace of the kernels does not count: touch all of it first, with a product as large
    // as its largest block
    real *a = device_alloc(sizeof(real) * 1536 * 384), *b = device_alloc(sizeof(real) * 384 * 3072),
         *out = device_alloc(sizeof(real) * 1536 * 3072);
    linear_forward(out, a, b, NULL, 1536, 384, 3072);
    device_free(a, sizeof(real) * 1536 * 384);
    device_free(b, sizeof(real) * 384 * 3072);
    device_free(out, sizeof(real) * 1536 * 3072);
    double before = resident("VmRSS");
    GPT2 *m = gpt2_create(&c, false);
    gpt2_init_weights(m, 1);
    gpt2_reserve(m, &limits);
    gpt2_forward(m, &(Batch){.S = 4, .N = 512, .start = start, .tokens = tokens}, NULL);
    gpt2_logprob(m, target, 1, logp, NULL, NULL);
    gpt2_backward(m, dlogp, NULL, NULL);
    gpt2_step(m,
              &(AdamW){.learning_rate = 1e-3f,
                       .beta1 = 0.9f,
                       .beta2 = 0.999f,
                       .epsilon = 1e-8f,
                       .max_grad_norm = 1},
              1);
    printf("%.0f %.0f\n", (double)gpt2_memory(&c, &limits).total, resident("VmHWM") - before);
    gpt2_free(m);
    return 0;
}

extern void __tsan_init(void)
    __attribute__((weak));  // exists under ThreadSanitizer, whose shadow memory is resident as well

START_TEST(memory_used_is_what_gpt2_memory_gives) {
    double told[2], grown[2];
    if (__tsan_init || !on_cpu()) return;  // the memory of a GPU is not part of the process
    for (int checkpointing = 0; checkpointing <= 1; checkpointing++) {
        char out[4096];
        ck_assert_int_eq(child(checkpointing ? "memory, checkpointing" : "memory", out, sizeof out),
                         0);
        ck_assert_msg(sscanf(out, "%lf %lf", &told[checkpointing], &grown[checkpointing]) == 2,
                      "%s", out);
        // 5 %: attention's workspace, arrays of the host, the ends of huge pages
        ck_assert_msg(fabs(grown[checkpointing] / told[checkpointing] - 1) < 0.05,
                      "%.1f MB expected, %.1f MB used", told[checkpointing] / 1e6,
                      grown[checkpointing] / 1e6);
    }
    ck_assert_double_gt(told[1], 100e6);
    ck_assert_double_lt(
        grown[1],
        grown[0] - 25e6);  // 9 C floats of 512 tokens in seven layers are not stored: 33 MB
}
END_TEST

static int run_as_child(const char *what) {
    if (!strcmp(what, "memory")) return measure_memory(false);
    if (!strcmp(what, "memory, checkpointing")) return measure_memory(true);
    for (int i = 0; i < LENGTH(refusals); i++)
        if (!strcmp(what, refusals[i].name)) refusals[i].run(reserved(false, small_limits));
    printf("no error\n");
    return 0;
}

int main(int argc, char **argv) {
    omp_set_num_threads(1);
    if (argc > 1) return run_as_child(argv[1]);
    Suite *suite = suite_create("memory");
    ADD("tensors", tensors_have_the_shapes_of_the_files, a_part_of_a_tensor_is_read_and_written,
        a_mapped_model_gives_the_same_bits, unaligned_weights_are_copied,
        initial_weights_have_the_documented_distribution, memory_is_what_gpt2_memory_gives);
    TCase *children = tcase_create("children");
    tcase_set_timeout(children, 3600);
    tcase_add_checked_fixture(children, begin, forget);
    tcase_add_loop_test(children, refusals_say_why_and_end_the_program, 0, LENGTH(refusals));
    tcase_add_test(children, memory_used_is_what_gpt2_memory_gives);
    suite_add_tcase(suite, children);
    return run_suite(suite) != 0;
}
