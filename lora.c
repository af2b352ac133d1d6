/*
 * lora.c - low-rank adaptation: fine-tune a frozen GPT-2 through a few small matrices beside its
 * large ones.
 *
 * A linear layer y = x W + b of the pre-trained model is left as it is, and beside it stands a
 * product of two thin matrices:
 *
 *     y = x W + b + (alpha / r) dropout(x) A^T B^T            A (r,in), B (out,r): all that trains;
 * r of 4 to 64, in and out of thousands
 *
 * A starts random and B zero, so that the first step starts from the model itself. What is learned
 * is a change of W of rank r, which can be added to W afterwards (--merge): then it costs nothing
 * to use. LoRA: Hu et al. 2021, sections 4.1 and 4.2. With --load_in_4bit the frozen matrices take
 * four bits a number: QLoRA, Dettmers et al. 2023, section 3, but for its paged optimiser, which
 * LoRA's states of some megabytes do not need.
 *
 * Read it next to full_ft.c with diff: the loop is the same. What is saved is honest. A frozen
 * matrix has no gradient and no moments, the product for its gradient is not computed, and its
 * weights stay in the file they are mapped from, which is never written. The result is a directory
 * of a few megabytes, as the PEFT library reads and writes it.
 *
 * Left out: LoRA on the embeddings, trained biases, DoRA, and ranks that differ from layer to
 * layer; adapters that have them are refused.
 */
#include "common/model/gpt2.h"  // the model: gpt2_forward, gpt2_logprob, gpt2_backward, gpt2_step
#include "common/model/loss.h"  // cross_entropy
#include "common/files/hf.h"    // hf_config, hf_load, PEFT's directories
#include "common/run/run.h"     // flags, schedule, log, checkpoints
#include "common/model/tap.h"   // the way into the network, and kernels.h
#include "common/run/chat.h"    // --prompt and --chat
#include "common/run/task.h"    // records as examples, held-out figures
#include "common/util.h"        // die, xmalloc

/* ---- flags ----------------------------------------------------------------------------------- */

static const char about[] =
    "fine-tuning of a frozen GPT-2 through low-rank matrices (LoRA), on a task or on plain text.\n"
    "With --adapter and --prompt, --chat or --merge it uses what it has trained. Without "
    "arguments: a small built-in example.";

static Task task;

static struct {
    const char *dropout, *target_modules, *adapter, *merge;
    int r;
    float lora_alpha, lora_dropout;
    bool use_rslora, load_in_4bit, double_quant, verify, allow_untrained;
    bool gradient_checkpointing;
} args;

static const Flag flags[] = {
    {"", FLAG_TITLE, NULL, .help = "LoRA"},
    TASK_FLAGS(task),
    {"r", FLAG_INT, &args.r, .low = 1, .high = 65536, .help = "rank: rows of A, columns of B"},
    {"lora_alpha", FLAG_FLOAT, &args.lora_alpha, .high = 1e6,
     .help = "the update counts alpha / r times"},
    {"lora_dropout", FLAG_FLOAT, &args.lora_dropout, .high = 0.99,
     .help = "probability on the input of A"},
    {"target_modules", FLAG_STRING, &args.target_modules,
     .help = "linear layers that get one, by the end of their name: c_attn, c_fc, c_proj (two of "
             "them), attn.c_proj, ...; all-linear"},
    {"use_rslora", FLAG_BOOL, &args.use_rslora,
     .help = "alpha / sqrt(r) times instead (Kalajdzievski 2023)"},
    {"load_in_4bit", FLAG_BOOL, &args.load_in_4bit,
     .help = "keep the frozen matrices of the blocks in four bits a number (QLoRA)"},
    {"bnb_4bit_use_double_quant", FLAG_BOOL, &args.double_quant,
     .help = "and the scales of their blocks in eight"},
    {"adapter", FLAG_STRING, &args.adapter,
     .help = "a directory of PEFT's to go on from, in place of the five flags that describe one"},
    {"merge", FLAG_STRING, &args.merge,
     .help = "write the model with the update added to its weights to this directory"},
    {"verify", FLAG_BOOL, &args.verify, .free_on_resume = true,
     .help = "and compare its logits with those of the model beside the update"},
    {"allow_untrained", FLAG_BOOL, &args.allow_untrained, .free_on_resume = true,
     .help = "use an adapter that changes nothing: every B is zero"},
    {"dropout", FLAG_STRING, &args.dropout, .bare = "config",
     .help = "probability on embeddings, attention and residuals; without a value: those of "
             "config.json"},
    {"gradient_checkpointing", FLAG_BOOL, &args.gradient_checkpointing,
     .help = "keep one activation a layer and compute the others again: less memory, more time"},
    TALK_FLAGS(task.talk, ""),
    {0},
};

/* The defaults for a model and data of one's own; or those of the built-in example, which learns
   something in half a minute. Gradient checkpointing is off, other than in full_ft.c: without
   gradients and moments of the model there is room for its activations, and computing them again
   would cost a third of the time that LoRA saves. */
static Run defaults(bool example) {
    Run run = run_defaults();
    run.per_device_train_batch_size = 2;
    run.gradient_accumulation_steps = 4;
    run.num_train_epochs = 5;
    run.learning_rate = 2e-4f;
    run.warmup_steps = 20;
    run.weight_decay = 0.01f;
    run.save_total_limit = 2;
    run.dataloader_drop_last = true;
    task = task_defaults();
    args.r = 16;
    args.lora_alpha = 32;
    args.lora_dropout = 0.1f;
    args.target_modules = "c_attn,c_proj,c_fc";
    args.use_rslora = args.load_in_4bit = args.verify = args.allow_untrained = false;
    args.double_quant = true;
    args.adapter = args.merge = NULL;
    args.dropout = "0";
    args.gradient_checkpointing = false;
    if (example) {
        run.model = run_example_file("tiny");
        run.data = run_example_file("tiny/domain.jsonl");
        run.eval = run_example_file("tiny/domain-eval.jsonl");
        run.per_device_train_batch_size = 8;
        run.gradient_accumulation_steps = 1;
        run.max_steps = 400;
        run.learning_rate = 3e-3f;
        run.adam_beta2 = 0.99f;
        run.lr_scheduler_type = "cosine";
        run.warmup_steps = 20;
        run.eval_steps = 200;
        run.logging_steps = 50;
        task.eval_samples = 128;
        args.lora_dropout =
            0;  // ten epochs of a few hundred short records: what a rank of 16 can hold it may use
    }
    return run;
}

/* ---- which layers ---------------------------------------------------------------------------- */

enum { SITES = TAP_MLP_C_PROJ + 1 };  // the four linear layers of a block, in the order of TapSite

static const char *const site_names[SITES] = {[TAP_C_ATTN] = "attn.c_attn",
                                              [TAP_ATTN_C_PROJ] = "attn.c_proj",
                                              [TAP_C_FC] = "mlp.c_fc",
                                              [TAP_MLP_C_PROJ] = "mlp.c_proj"};

/* What this program adds to the model. */
static struct {
    LoraConfig config;
    float scale;          // alpha / r
    int layers, tensors;  // tensors added: A and B of each module
    int (*first)[SITES];  // (layers) which of them is the A of a layer's module; B follows; -1 = it
                          // has none
    GPT2Tensor *tensor;   // (tensors)
    int rows;             // N, the most of a batch
    real *low, *wide;     // (N,r), (N, largest IC): scratch
    size_t low_bytes, wide_bytes;
} lora;

/* As in PEFT: a name means every module whose full name is it, or ends with it after a dot. */
static bool matches(const char *module, const char *name, size_t n) {
    const size_t length = strlen(module);
    if (n == strlen("all-linear") && !strncmp(name, "all-linear", n)) return true;
    return length >= n && !strncmp(module + length - n, name, n) &&
           (length == n || module[length - n - 1] == '.');
}

static void add(const char *module, char which, int rows, int columns) {
    GPT2Tensor *t = &lora.tensor[lora.tensors++];
    *t = (GPT2Tensor){.ndim = 2, .shape = {rows, columns}, .n = (size_t)rows * (size_t)columns};
    snprintf(t->name, sizeof t->name, "base_model.model.%s.lora_%c.weight", module,
             which);  // where PEFT wraps the module
}

/* The name after this one in a list with commas. */
static const char *next(const char *name) {
    name += strcspn(name, ",");
    return *name ? name + 1 : name;
}

/* Finds the modules that l->targets names in a model of shape c, and fills in lora. -1 with e
 * filled: a name that means none. */
static int lora_plan(const LoraConfig *l, const GPT2Config *c, Error *e) {
    const int in[SITES] = {c->n_embd, c->n_embd, c->n_embd, c->n_inner},
              out[SITES] = {3 * c->n_embd, c->n_embd, c->n_inner, c->n_embd};
    lora.config = *l;
    lora.scale = l->alpha / (l->rslora ? sqrtf((float)l->r) : (float)l->r);
    lora.layers = c->n_layer;
    lora.tensors = 0;
    lora.first = xmalloc(sizeof *lora.first * (size_t)c->n_layer);
    const size_t most = (size_t)c->n_layer * SITES * 2;
    lora.tensor = (GPT2Tensor *)xcalloc(most, sizeof *lora.tensor);
    bool used[sizeof l->targets] = {0};  // by where in targets a name begins
    for (int layer = 0; layer < c->n_layer; layer++)
        for (int site = 0; site < SITES; site++) {
            char module[64];
            bool wanted = false;
            snprintf(module, sizeof module, "transformer.h.%d.%s", layer, site_names[site]);
            for (const char *name = l->targets; *name; name = next(name))
                if (matches(module, name, strcspn(name, ",")))
                    wanted = used[name - l->targets] = true;
            lora.first[layer][site] = wanted ? lora.tensors : -1;
            if (!wanted) continue;
            add(module, 'A', l->r, in[site]);
            add(module, 'B', out[site], l->r);
        }
    int status = *l->targets ? 0 : fail(e, "names no module; they are c_attn, c_proj and c_fc");
    for (const char *name = l->targets; *name && !status; name = next(name))
        if (!used[name - l->targets])
            status = fail(e,
                          "\"%.*s\" is the end of no linear layer's name; they are transformer.h.0 "
                          "to %d.attn.c_attn, .attn.c_proj, .mlp.c_fc, .mlp.c_proj",
                          (int)strcspn(name, ","), name, c->n_layer - 1);
    return status;
}

static void lora_free(void) {
    device_free(lora.low, lora.low_bytes);
    device_free(lora.wide, lora.wide_bytes);
    free(lora.first);
    free(lora.tensor);
    memset(&lora, 0, sizeof lora);
}

static size_t lora_parameters(void) {
    size_t n = 0;
    for (int i = 0; i < lora.tensors; i++) n += lora.tensor[i].n;
    return n;
}

/* The modules, PEFT's line of counts, and what the weights take. */
static void lora_print(const GPT2Config *c) {
    const size_t base = gpt2_parameters(c, TRAIN_ALL), own = lora_parameters(),
                 C = (size_t)c->n_embd, L = (size_t)c->n_layer;
    printf("LoRA: r %d, alpha %g (%g times), dropout %g, on\n", lora.config.r,
           (double)lora.config.alpha, (double)lora.scale, (double)lora.config.dropout);
    size_t matrices = 0, packed = 0;
    for (int site = 0; site < SITES; site++) {
        const GPT2Tensor *A = NULL, *B = NULL;
        int count = 0;
        for (int layer = 0; layer < lora.layers; layer++)
            if (lora.first[layer][site] >= 0) {
                count++;
                A = &lora.tensor[lora.first[layer][site]];
                B = A + 1;
            }
        if (count)
            printf("  transformer.h.*.%-12s %2d of %d layers   A (%d,%d)   B (%d,%d)\n",
                   site_names[site], count, lora.layers, A->shape[0], A->shape[1], B->shape[0],
                   B->shape[1]);
        const int in = site == TAP_MLP_C_PROJ ? c->n_inner : c->n_embd,
                  out = site == TAP_C_ATTN ? 3 * c->n_embd
                        : site == TAP_C_FC ? c->n_inner
                                           : c->n_embd;
        matrices += L * (size_t)in * (size_t)out;
        packed += L * nf4_bytes(in, out, args.double_quant);
    }
    run_print_parameters(own, base + own);
    const size_t embeddings = ((size_t)c->vocab_size + (size_t)c->n_positions) * C;
    printf("weights: embeddings %.1f MB (float32), matrices of the blocks %.1f MB",
           4e-6 * (double)embeddings,
           args.load_in_4bit ? 1e-6 * (double)packed : 4e-6 * (double)matrices);
    if (args.load_in_4bit)
        printf(" (NF4%s, %.3f bits each; %.1f MB in float32)",
               args.double_quant ? ", doubly quantised" : "", 8 * (double)packed / (double)matrices,
               4e-6 * (double)matrices);
    else
        printf(" (float32)");
    printf(", norms and biases %.1f MB, LoRA %.1f MB\n",
           4e-6 * (double)(base - embeddings - matrices), 4e-6 * (double)own);
}

/* ---- forward and backward -------------------------------------------------------------------- */

/* x' = dropout(x): x itself, or a copy in wide. Drawn from what the call is, it is the same in
 * backward as it was in forward. */
static const real *dropped(const TapCall *c, Noise noise) {
    if (noise.p <= 0) return c->inp;
    device_copy(lora.wide, c->inp, sizeof(real) * (size_t)c->N * (size_t)c->IC);
    dropout(lora.wide, c->N, c->IC, noise);
    return lora.wide;
}

/* out (N,OC) += Z B^T,  Z (N,r) = s x' A^T,  x' (N,IC) = dropout(x);  A (r,IC), B (OC,r), s = alpha
 * / r */
static void lora_forward(void *context, const TapCall *c) {
    const int k = lora.first[c->layer][c->site], N = c->N, IC = c->IC, OC = c->OC,
              r = lora.config.r;
    (void)context;
    if (k < 0) return;
    const real *A = gpt2_weight(c->m, gpt2_own_tensors(c->m) + k),
               *B = gpt2_weight(c->m, gpt2_own_tensors(c->m) + k + 1);
    real *Z = lora.low;
    projection_forward(Z, dropped(c, tap_noise(c, lora.config.dropout, RANDOM_DROPOUT_LORA)), A,
                       NULL, false, N, IC, r);
    scale(Z, lora.scale, (size_t)N * (size_t)r);
    projection_forward(c->out, Z, B, NULL, true, N, r, OC);
}

/* Z is computed again: that takes a sixth of these products, and nothing has to be kept from
 * forward to backward. */
static void lora_backward(void *context, const TapCall *c) {
    const int k = lora.first[c->layer][c->site], N = c->N, IC = c->IC, OC = c->OC,
              r = lora.config.r;
    (void)context;
    if (k < 0) return;
    const int i = gpt2_own_tensors(c->m) + k;
    const real *A = gpt2_weight(c->m, i), *B = gpt2_weight(c->m, i + 1);
    const Noise noise = tap_noise(c, lora.config.dropout, RANDOM_DROPOUT_LORA);
    const real *x = dropped(c, noise);
    real *Z = lora.low, *dZ = lora.low;
    // out += Z B^T,  Z = s x' A^T:  dB (OC,r) += dout^T Z
    projection_forward(Z, x, A, NULL, false, N, IC, r);
    scale(Z, lora.scale, (size_t)N * (size_t)r);
    projection_backward_weight(gpt2_gradient(c->m, i + 1), NULL, Z, c->dout, N, r, OC);
    // with dZ (N,r) = s dout B:  dA (r,IC) += dZ^T x'
    projection_backward_input(dZ, c->dout, B, false, N, r, OC);
    scale(dZ, lora.scale, (size_t)N * (size_t)r);
    projection_backward_weight(gpt2_gradient(c->m, i), NULL, x, dZ, N, IC, r);
    // x' = dropout(x):  dx += dropout(dZ A)
    if (!c->dinp) return;
    if (noise.p > 0) {
        projection_backward_input(lora.wide, dZ, A, false, N, IC, r);
        dropout_add(c->dinp, lora.wide, N, IC, noise);
    } else {
        projection_backward_input(c->dinp, dZ, A, true, N, IC, r);
    }
}

static Tap tap = {.forward = lora_forward, .backward = lora_backward};

/* What the model must make room for, and where it calls. */
static void lora_limits(GPT2Limits *limits) {
    for (int site = 0; site < SITES; site++) {
        tap.at[site] = false;
        for (int layer = 0; layer < lora.layers; layer++)
            tap.at[site] |= lora.first[layer][site] >= 0;
    }
    limits->trains = TRAIN_NONE;
    limits->format = !args.load_in_4bit  ? FORMAT_FLOAT
                     : args.double_quant ? FORMAT_NF4_DOUBLE
                                         : FORMAT_NF4;
    limits->more = lora.tensor;
    limits->more_n = lora.tensors;
    limits->tap = &tap;
}

/* Bytes of scratch; taken unless only counted. */
static size_t lora_reserve(const GPT2Limits *limits, const GPT2Config *c, bool count) {
    const size_t N = (size_t)limits->tokens,
                 widest = (size_t)(tap.at[TAP_MLP_C_PROJ] && c->n_inner > c->n_embd ? c->n_inner
                                                                                    : c->n_embd);
    lora.rows = limits->tokens;
    lora.low_bytes = sizeof(real) * N * (size_t)lora.config.r;
    lora.wide_bytes = limits->train && lora.config.dropout > 0 ? sizeof(real) * N * widest : 0;
    if (count) return lora.low_bytes + lora.wide_bytes;
    lora.low = device_alloc(lora.low_bytes);
    lora.wide = device_alloc(lora.wide_bytes);
    if (!lora.low || !lora.wide)
        die("out of memory for %zu bytes of scratch; use a smaller --per_device_train_batch_size",
            lora.low_bytes + lora.wide_bytes);
    return lora.low_bytes + lora.wide_bytes;
}

/* ---- start, save, load ----------------------------------------------------------------------- */

/* A uniform in +-1/sqrt(in), as nn.Linear's; B is zero already. */
static void lora_init(GPT2 *m, uint64_t seed) {
    for (int i = gpt2_own_tensors(m); i < gpt2_tensors(m); i += 2) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        const float bound = 1 / sqrtf((float)t->shape[1]);
        float *a = (float *)xmalloc(sizeof *a * t->n);
        for (size_t j = 0; j < t->n; j++)
            a[j] =
                bound *
                (2 * random_uniform(random4(seed, RANDOM_INIT, (uint32_t)i, 0, 0, (uint32_t)(j / 4))
                                        .v[j % 4]) -
                 1);
        gpt2_write(m, i, GPT2_WEIGHT, 0, t->n, a);
        free(a);
    }
}

static const char weights_name[] = "adapter_model.safetensors";

static int lora_save(const GPT2 *m, const char *dir, const char *from, Error *e) {
    char *config = hf_lora_text(&lora.config, from);
    int status = hf_save_added(m, dir, weights_name, config, e);
    free(config);
    return status;
}

/* Is every B zero, as nobody ever trained it? */
static bool is_untrained(const GPT2 *m) {
    bool zero = true;
    for (int i = gpt2_own_tensors(m) + 1; i < gpt2_tensors(m) && zero; i += 2) {
        const size_t n = gpt2_tensor(m, i)->n;
        float *b = (float *)xmalloc(sizeof *b * n);
        gpt2_read(m, i, GPT2_WEIGHT, 0, n, b);
        for (size_t j = 0; j < n && zero; j++) zero = b[j] == 0;
        free(b);
    }
    return zero;
}

/* ---- merging --------------------------------------------------------------------------------- */

enum { VERIFIED = 128 };  // tokens whose logits --verify compares

/* W (in,out) of merged += s A^T B^T of m, summed in double. -1 with e filled: the result is not
 * finite. */
static int lora_merge(GPT2 *merged, const GPT2 *m, Error *e) {
    const int r = lora.config.r, own = gpt2_own_tensors(m);
    for (int i = 0; i < own; i++) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        int k = 0;  // the A whose name, without what PEFT puts around it, is this tensor's
        for (; k < lora.tensors; k += 2) {
            const char *module = lora.tensor[k].name + strlen("base_model.model.transformer.");
            size_t n = strlen(module) - strlen("lora_A.weight");
            if (!strncmp(module, t->name, n) && !strcmp(t->name + n, "weight")) break;
        }
        if (k >= lora.tensors) continue;
        const size_t in = (size_t)t->shape[0], out = (size_t)t->shape[1], R = (size_t)r;
        float *A = (float *)xmalloc(sizeof(float) * R * (in + out)), *B = A + R * in,
              *W = (float *)xmalloc(sizeof(float) * t->n);
        gpt2_read(m, own + k, GPT2_WEIGHT, 0, R * in, A);
        gpt2_read(m, own + k + 1, GPT2_WEIGHT, 0, R * out, B);
        gpt2_read(merged, i, GPT2_WEIGHT, 0, t->n, W);
        bool finite = true;
#pragma omp parallel for reduction(&& : finite)
        for (size_t x = 0; x < in; x++)
            for (size_t y = 0; y < out; y++) {
                double sum = 0;
                for (size_t j = 0; j < R; j++) sum += (double)A[j * in + x] * (double)B[y * R + j];
                W[x * out + y] = (float)((double)W[x * out + y] + (double)lora.scale * sum);
                finite = finite && isfinite(W[x * out + y]);
            }
        gpt2_write(merged, i, GPT2_WEIGHT, 0, t->n, W);
        free(A);
        free(W);
        if (!finite)
            return fail(e,
                        "%s with the update is not finite; the adapter is damaged, or its training "
                        "diverged",
                        t->name);
    }
    return 0;
}

/* Another model with the same update beside its frozen weights, for batches of limits' size. */
static GPT2 *beside(const GPT2 *m, const char *base, GPT2Limits limits, GPT2Format format) {
    Error e;
    GPT2 *other = hf_load(base, true, &e);
    if (!other) die_usage("%s", e.text);
    lora_limits(&limits);
    limits.format = format;
    gpt2_reserve(other, &limits);
    for (int i = gpt2_own_tensors(m); i < gpt2_tensors(m); i++) {
        const size_t n = gpt2_tensor(m, i)->n;
        float *x = (float *)xmalloc(sizeof *x * n);
        gpt2_read(m, i, GPT2_WEIGHT, 0, n, x);
        gpt2_write(other, i, GPT2_WEIGHT, 0, n, x);
        free(x);
    }
    return other;
}

/* The largest difference between the logits of merged and of the model beside the update, over
 * tokens drawn at random. */
static double largest_logit_difference(GPT2 *merged, const GPT2 *m, const char *base,
                                       GPT2Limits limits, GPT2Format format, double *largest) {
    const int N = limits.tokens, start[2] = {0, N};
    int *token = (int *)xmalloc(sizeof(int) * (size_t)N * 2), *target = token + N;
    float *logp = (float *)xmalloc(sizeof(float) * (size_t)N), size;
    for (int i = 0; i < N; i++) {
        token[i] = (int)(random4(1, RANDOM_DATA, 0, 0, (uint32_t)i, 0).v[0] %
                         (uint32_t)gpt2_config(m)->vocab_size);
        target[i] = 0;
    }
    const Batch batch = {.S = 1, .N = N, .start = start, .tokens = token};
    GPT2 *model[2] = {merged, beside(m, base, limits, keep)};
    for (int i = 0; i < 2; i++) {
        gpt2_forward(model[i], &batch, NULL);
        gpt2_logprob(model[i], target, 1, logp, NULL, NULL);
    }
    double difference = (double)gpt2_logit_difference(model[1], model[0], &size);
    *largest = (double)size;
    gpt2_free(model[1]);
    free(token);
    free(logp);
    return difference;
}

/* The directory for --merge must hold no model yet, least of all the base, unless it may be
 * overwritten. */
static void check_merge(const Run *run) {
    Str path = {0};
    struct stat a, b;
    if (!stat(args.merge, &a) && !stat(run->model, &b) && a.st_dev == b.st_dev &&
        a.st_ino == b.st_ino)
        die_usage(
            "--merge %s is the base model's own directory, which is never written; choose another",
            args.merge);
    str_printf(&path, "%s/model.safetensors", args.merge);
    if (!access(path.s, F_OK) && !run->overwrite_output_dir &&
        !run_checkpoint_dir(run))  // a run that goes on had it empty when it began
        die_usage(
            "--merge %s already holds a model; choose another directory, or allow it with "
            "--overwrite_output_dir",
            args.merge);
    free(path.s);
}

/* --merge, and --verify. Always into the weights of the file: rounding the sum to four bits would
   lose the update. form: the template that was trained in, or NULL. */
static void merge(const GPT2 *m, const char *base, const char *form) {
    Error e;
    GPT2 *merged = hf_load(base, false, &e);
    if (!merged) die_usage("%s", e.text);
    if (lora_merge(merged, m, &e) || hf_save(merged, args.merge, base, &e) ||
        (form && hf_save_template(args.merge, form, &e)))
        die("%s", e.text);
    printf(
        "the merged model is in %s: give it to --model, or in Python to "
        "AutoModelForCausalLM.from_pretrained(\"%s\")\n",
        args.merge, args.merge);
    if (args.load_in_4bit)
        printf(
            "the update was added to the float32 weights of %s, not to the four-bit ones it was "
            "trained on\n",
            base);
    if (args.verify) {
        const int most =
            gpt2_config(m)->n_positions < lora.rows ? gpt2_config(m)->n_positions : lora.rows;
        GPT2Limits limits = {.tokens = most < VERIFIED ? most : VERIFIED, .sequences = 1};
        limits.scored = limits.tokens;
        gpt2_reserve(merged, &limits);
        double largest,
            difference = largest_logit_difference(merged, m, base, limits, FORMAT_FLOAT, &largest);
        printf(
            "verified on %d tokens: the logits differ by at most %.3g, where the largest is %.3g\n",
            limits.tokens, difference, largest);
        if (args.load_in_4bit) {
            difference = largest_logit_difference(
                merged, m, base, limits, args.double_quant ? FORMAT_NF4_DOUBLE : FORMAT_NF4,
                &largest);
            printf(
                "from those beside the four-bit weights by at most %.3g: that is what four bits "
                "cost\n",
                difference);
        }
    }
    gpt2_free(merged);
}

/* --adapter without data: writes --merge, answers. */
static int use(Run *run, const GPT2Config *config) {
    Error e;
    GPT2Limits limits = {.tokens = 1, .sequences = 1};
    if (talk_asked(&task.talk))
        limits = talk_prepare(&task.talk, args.adapter, run->model, task.template, config);
    if (limits.tokens < VERIFIED) limits.tokens = VERIFIED;
    lora_limits(&limits);
    GPT2 *model = hf_load(run->model, true, &e);
    if (!model) die_usage("%s", e.text);
    gpt2_reserve(model, &limits);
    lora_reserve(&limits, config, false);
    if (hf_load_added(model, args.adapter, weights_name, &e)) die_usage("%s", e.text);
    if (is_untrained(model) && !args.allow_untrained)
        die_usage(
            "%s/%s: every B is zero, so that it changes nothing: was it saved before it was "
            "trained? --allow_untrained uses it all the same",
            args.adapter, weights_name);
    char *form;
    if (hf_template(args.adapter, &form, &e)) die_usage("%s", e.text);
    if (args.merge) merge(model, run->model, form);
    if (talk_asked(&task.talk)) talk_hold(&task.talk, model, (uint64_t)run->seed);
    gpt2_free(model);
    lora_free();
    free(form);
    talk_free(&task.talk);
    run_free(run);
    return 0;
}

/* ---- the loop -------------------------------------------------------------------------------- */

#ifndef TESTING
int main(int argc, char **argv) {
    // Flags. Neither a model nor data means the built-in example; flags that are given count either
    // way.
    Error e;
    Run run = defaults(false);
    bool example = run_parse(&run, "lora", flags, argc, argv, &e) == 0 && !run.model && !run.data &&
                   !args.adapter && !talk_asked(&task.talk);
    run_free(&run);
    run = defaults(example);
    run_start(&run, "lora", about, flags, argc, argv);
    const bool using =
        run.model && args.adapter && !run.data && (talk_asked(&task.talk) || args.merge);
    if (!using && talk_asked(&task.talk))
        die_usage(
            "--prompt and --chat are answered by --model DIR with --adapter DIR; ./sft answers "
            "from a model alone");
    if (!using && (!run.model || !run.data))
        die_usage(
            "--model DIR and --data FILE are both needed (or neither, for the built-in example); "
            "or --model, --adapter, and --prompt, --chat or --merge");

    // The model's shape, the records as tokens, and what it all takes
    GPT2Config config;
    GPT2Noise noise = {.seed = (uint64_t)run.seed};
    LoraConfig lora_config = {args.r, args.lora_alpha, args.lora_dropout, args.use_rslora, ""};
    const char *adapter = run_checkpoint_dir(&run) ? run_checkpoint_dir(&run) : args.adapter;
    if (hf_config(run.model, &config, &e)) die_usage("%s", e.text);
    if (snprintf(lora_config.targets, sizeof lora_config.targets, "%s", args.target_modules) >=
        (int)sizeof lora_config.targets)
        die_usage("--target_modules is longer than %zu characters", sizeof lora_config.targets);
    if (adapter && hf_lora_config(adapter, &lora_config, &e)) die_usage("%s", e.text);
    if (lora_plan(&lora_config, &config, &e))
        die_usage("%s %s", adapter ? adapter : "--target_modules", e.text);
    if (run_dropout(&noise, &config, args.dropout, &e))
        die_usage("--dropout %s: it %s", args.dropout, e.text);
    if (args.merge) check_merge(&run);
    if (using) return use(&run, &config);
    run_echo(&run);
    lora_print(&config);
    task_load(&task, &run, &config);
    GPT2Limits limits = task_limits(&task, &run);
    limits.gradient_checkpointing = args.gradient_checkpointing;
    lora_limits(&limits);
    const size_t scratch = lora_reserve(&limits, &config, true);
    GPT2Memory memory = gpt2_memory(&config, &limits);
    memory.workspace += scratch;
    memory.total += scratch;
    run_print_memory(&memory);
    task_show(&task, run.dry_run ? 3 : 1);
    if (run.dry_run) {
        task_free(&task);
        lora_free();
        run_free(&run);
        return 0;
    }

    GPT2 *model = hf_load(run.model, true, &e);
    if (!model) die_usage("%s", e.text);
    gpt2_reserve(model, &limits);
    lora_reserve(&limits, &config, false);
    lora_init(model, (uint64_t)run.seed);
    if (adapter && hf_load_added(model, adapter, weights_name, &e)) die_usage("%s", e.text);
    task_reserve(&task, &limits);
    run_saver(&run, lora_save,
              "the adapter is in %s: give it to --adapter, or in Python to "
              "PeftModel.from_pretrained(model, ...)");
    Totals interval = {0};  // since the last line of the log
    double num_tokens = 0;  // trained on
    run_keep(&run, "loss", &interval.loss);
    run_keep(&run, "entropy", &interval.entropy);
    run_keep(&run, "correct", &interval.correct);
    run_keep(&run, "tokens", &interval.tokens);
    run_keep(&run, "num_tokens", &num_tokens);
    double best = INFINITY;  // held-out loss of the adapter in OUTPUT/best
    run_keep(&run, "best", &best);
    run_resume(&run, model);

    const int batch_size = run.per_device_train_batch_size;
    const RaggedBatch *batch = &task.batch;
    int *which =
        (int *)xmalloc(sizeof(int) * (size_t)(batch_size * run.gradient_accumulation_steps));
    Totals before = task_evaluate(&task, model, batch_size), after = before;
    task_print_totals("before", before);
    Generation was = task_answer(&task, model);

    while (run.step < run.total_steps && !run_interrupted()) {
        // 1. the examples of this step, and M, the number of tokens it scores
        int n = run_examples(&run, run.step, which);
        double M = 0, loss = 0;
        for (int i = 0; i < n; i++)
            M += dataset_targets(task.train.data, which[i] = task.train.which[which[i]]);
        // 2. per micro-batch: log p of every scored token, the loss, its gradient; the gradients
        // add up
        noise.step = (uint32_t)run.step;
        long tokens = 0;
        for (int i = 0; i < n; i += batch_size) {
            ragged_fill(&task.batch, task.train.data, which + i,
                        n - i < batch_size ? n - i : batch_size);
            gpt2_forward(model, &batch->batch, &noise);
            gpt2_logprob(model, batch->target, 1, task.y.logp, task.y.entropy, task.y.best);
            loss += cross_entropy(batch->batch.N, batch->target, task.y.logp, M, task.y.dlogp);
            gpt2_backward(model, task.y.dlogp, NULL, NULL);
            task_add(&task, &interval);
            tokens += batch->batch.N;
        }
        // 3. clip, AdamW
        AdamW adamw = run_adamw(&run, run.step);
        double norm = (double)gpt2_step(model, &adamw, run.step + 1);
        if (!isfinite(loss) || !isfinite(norm))
            die("step %d: the loss is %g and the gradient's norm %g; lower --learning_rate, or "
                "look at the records of this step, the first on line %d of %s",
                run.step + 1, loss, norm, task.train.data->line[which[0]], run.data);
        run.step++;
        num_tokens += (double)tokens;
        // 4. log, evaluate, save
        run_progress(&run, loss, tokens);
        if (run_should_log(&run)) {
            run_log(&run, {"loss", interval.loss / interval.tokens},
                    {"entropy", interval.entropy / interval.tokens},
                    {"mean_token_accuracy", interval.correct / interval.tokens},
                    {"grad_norm", norm}, {"learning_rate", (double)adamw.learning_rate},
                    {"num_tokens", num_tokens}, {"epoch", run_epoch(&run)});
            interval = (Totals){0};
        }
        if (run_should_evaluate(&run) && task.held_out.n) {
            after = task_evaluate(&task, model, batch_size);
            run_log(&run, {"eval_loss", after.loss / after.tokens},
                    {"eval_perplexity", exp(after.loss / after.tokens)},
                    {"eval_mean_token_accuracy", after.correct / after.tokens});
            if (after.loss / after.tokens < best) {
                best = after.loss / after.tokens;
                run_save(&run, model, "best");
            }
        }
        if (run_should_save(&run)) run_checkpoint(&run, model);
    }

    // What it has learned
    if (!run_interrupted() && run.total_steps > 0) {
        Generation is = task_answer(&task, model);
        task_report(&task, &was, &is, before, after);
        generation_free(&is);
    }
    if (args.merge && !run_interrupted()) merge(model, run.model, task.form);
    run_print_peak_memory(&memory);
    int status = run_finish(&run, model);
    generation_free(&was);
    gpt2_free(model);
    lora_free();
    task_free(&task);
    free(which);
    return status;
}
#endif
