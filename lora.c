/*
 * lora.c - low-rank adaptation: fine-tune a frozen GPT-2 by adding products of small matrices to
 * its large matrices.
 *
 * The weight W (in,out) of a linear layer y = x W + b stays as it is. The technique adds a product
 * of two thin matrices, which are all that trains:
 *
 *     y = x W + b + s dropout(x) A^T B^T        A (r,in), B (out,r), s = alpha / r
 *
 * r is 4 to 64, where in and out are hundreds or thousands. A starts random and B starts at zero,
 * so the first step starts from the model itself. The learned change s A^T B^T of W has rank r. It
 * can be added to W afterwards (--merge), and then costs nothing in use. LoRA: Hu et al. 2021,
 * sections 4.1 and 4.2. With --load_in_4bit the frozen matrices take four bits per number: QLoRA,
 * Dettmers et al. 2023, section 3, without its paged optimiser, which the few megabytes of LoRA's
 * optimiser state do not need.
 *
 * Read it next to full_ft.c with diff: the loop is the same. The network calls lora_forward after
 * each linear layer, and lora_backward in its backward pass. Such a place in the network is a site;
 * common/model/tap.h lists them. A frozen matrix has no gradient and no moments, and the product
 * for its gradient is not computed. Its weights stay in the file that they are mapped from, which
 * is never written. The result is a directory of a few megabytes, in the format of the PEFT
 * library.
 *
 * Left out: LoRA on the embeddings (its site would be TAP_WTE of tap.h), trained biases, DoRA, and
 * ranks that differ between layers. Adapters that use them are refused.
 */
#include "common/posttrain.h"
#include "common/files/peft.h"     // PEFT's adapter_config.json
#include "common/model/kernels.h"  // products and dropout on the device
#include "common/model/tap.h"      // how the technique adds to the network
#include "common/run/technique.h"  // added tensors, adapters in files, merging into a model

/* ---- flags ----------------------------------------------------------------------------------- */

static Task task;  // the flags of a supervised task, its records, and arrays for a micro-batch
static AdapterFlags files;  // --adapter, --merge

static struct {
    const char *target_modules;
    int r;
    float lora_alpha, lora_dropout;
    bool use_rslora, load_in_4bit, double_quant;
} args;

static const Flag flags[] = {
    TITLE("LoRA"),
    TASK_FLAGS(task),
    // Off, unlike in full_ft.c: a frozen model has no gradients and moments, so there is memory for
    // its activations. LoRA saves time, and recomputing them would cost a third of that saving
    GRADIENT_CHECKPOINTING_FLAG(task.gradient_checkpointing, "false"),
    {"r", NUMBER(args.r, "16", 1, 65536), "The rank: the rows of A and the columns of B."},
    {"lora_alpha", NUMBER(args.lora_alpha, "32", 0, 1e6),
     "Multiply the product of A and B by lora_alpha / r."},
    {"lora_dropout", NUMBER(args.lora_dropout, "0.1", 0, 0.99),
     "The dropout probability on the input of A."},
    {"target_modules", TEXT(args.target_modules, "c_attn,c_proj,c_fc"),
     "The linear layers that get a LoRA, by the end of their names: c_attn, c_fc, c_proj (two "
     "layers), attn.c_proj, ...; or all-linear."},
    {"use_rslora", SWITCH(args.use_rslora, "false"),
     "Multiply the product of A and B by lora_alpha / sqrt(r) (Kalajdzievski 2023)."},
    {"load_in_4bit", SWITCH(args.load_in_4bit, "false"),
     "Quantise the frozen matrices of the blocks to four bits, NF4 (QLoRA)."},
    {"bnb_4bit_use_double_quant", SWITCH(args.double_quant, "true"),
     "Also quantise the NF4 block scales, to eight bits.", .only_with = "load_in_4bit"},
    {"adapter", TEXT(files.adapter, NULL),
     "Start from the LoRA in this directory, in PEFT's format; it determines rank, alpha, dropout "
     "and modules.",
     .conflicts = "r lora_alpha lora_dropout target_modules use_rslora"},
    MERGE_FLAGS(files),
    ALLOW_UNTRAINED_FLAG(files, "every B"),  // "... because every B is zero"
    CHAT_FLAGS(task.chat, "dump_tokens"),    // --prompt, --chat; --dump_tokens conflicts with them
    {0},
};

/* ---- mathematics: which layers --------------------------------------------------------------- */

enum { SITES = TAP_MLP_C_PROJ + 1 };  // the four linear layers of a block, in the order of TapSite
_Static_assert(TAP_C_ATTN == 0 && SITES == 4, "the linear layers come first in TapSite");

static const char *const site_names[SITES] = {[TAP_C_ATTN] = "attn.c_attn",
                                              [TAP_ATTN_C_PROJ] = "attn.c_proj",
                                              [TAP_C_FC] = "mlp.c_fc",
                                              [TAP_MLP_C_PROJ] = "mlp.c_proj"};

/* A and B of every layer that has a LoRA, in this order. Tensor k of added is tensor
   i = gpt2_own_tensors(m) + k of a model m: k is even for an A, and B follows it. */
static Added added;

static struct {
    LoraConfig config;
    float scale;  // s = alpha / r, or with --use_rslora alpha / sqrt(r)
    real *low;    // (N,r) scratch on the device. real: the type of weights and activations
    real *wide;   // (N, the largest in) scratch, only for dropout
} lora;

/* The sizes of a linear layer's input and output. */
static void site_shape(const GPT2Config *c, int site, int *in, int *out) {
    *in = site == TAP_MLP_C_PROJ ? c->n_inner : c->n_embd;
    *out = site == TAP_C_ATTN ? 3 * c->n_embd : site == TAP_C_FC ? c->n_inner : c->n_embd;
}

/* Adds an A (r,in) and a B (out,r) to each linear layer of a model of shape c that l->targets
   names. The names of the tensors are PEFT's, which puts "transformer." before those of the model.
   -1 with e filled: a target is the name of no layer. */
static int lora_plan(const LoraConfig *l, const GPT2Config *c, Error *e) {
    bool used[sizeof l->targets] = {0};  // at the character where a name begins: it names a layer
    lora.config = *l;
    lora.scale = l->alpha / (l->rslora ? sqrtf((float)l->r) : (float)l->r);
    added_begin(&added, c->n_layer);
    for (int layer = 0; layer < c->n_layer; layer++)
        for (int site = 0; site < SITES; site++) {
            int in, out;
            char module[64];
            site_shape(c, site, &in, &out);
            snprintf(module, sizeof module, "transformer.h.%d.%s", layer, site_names[site]);
            if (!is_target(module, l->targets, used)) continue;
            added_site(&added, layer, (TapSite)site);
            added_append(&added, l->r, in, "base_model.model.%s.lora_A.weight", module);
            added_append(&added, out, l->r, "base_model.model.%s.lora_B.weight", module);
        }
    added.trains = TRAIN_NONE;  // of the model's own tensors
    // QLoRA: the frozen matrices in four bits
    added.format = !args.load_in_4bit  ? FORMAT_FLOAT
                   : args.double_quant ? FORMAT_NF4_DOUBLE
                                       : FORMAT_NF4;
    return check_targets(l->targets, used, c->n_layer, e);
}

/* ---- mathematics: start ---------------------------------------------------------------------- */

/* A is uniform in +-1/sqrt(in), as in PEFT, which starts it like nn.Linear's weight. (Hu et al.
   draw normal numbers.) B is zero already: added tensors are zero when the model is reserved. */
static void lora_init(GPT2 *m, uint64_t seed) {
    for (int k = 0; k < added.n; k += 2) {
        const GPT2Tensor *A = &added.tensor[k];
        const uint32_t tensor = (uint32_t)(gpt2_own_tensors(m) + k);  // has its own random stream
        const float bound = 1 / sqrtf((float)A->shape[1]);
        float *values = (float *)xmalloc(sizeof *values * A->n);
        for (size_t j = 0; j < A->n; j++) {
            const Random4 draw = random4(seed, RANDOM_INIT, tensor, 0, 0, (uint32_t)(j / 4));
            values[j] = bound * (2 * random_uniform(draw.v[j % 4]) - 1);
        }
        added_write(m, k, values);
        free(values);
    }
}

/* ---- mathematics: forward and backward ------------------------------------------------------- */

/* The products of kernels.h, for a weight (out,in). bias NULL: there is none. add: += instead of =.
     projection_forward(y, x, weight, bias, add, N, in, out)         y = x weight^T + bias
     projection_backward_input(dx, dy, weight, add, N, in, out)      dx = dy weight
     projection_backward_weight(dweight, dbias, x, dy, N, in, out)   dweight += dy^T x */

/* x' (N,in) = dropout(x): x itself, or a copy in lora.wide. The noise is a function of the call, so
   it is the same in the backward as in the forward pass. */
static const real *dropped(const TapCall *c, Noise noise) {
    if (noise.p <= 0) return c->inp;
    device_copy(lora.wide, c->inp, sizeof(real) * (size_t)c->N * (size_t)c->IC);
    dropout(lora.wide, c->N, c->IC, noise);
    return lora.wide;
}

/* Z (N,r) = s x' A^T, in lora.low */
static real *down(const TapCall *c, const real *x, const real *A) {
    const int r = lora.config.r;
    projection_forward(lora.low, x, A, NULL, false, c->N, c->IC, r);
    scale(lora.low, lora.scale, (size_t)c->N * (size_t)r);
    return lora.low;
}

/* out (N,out) += Z B^T,  Z (N,r) = s x' A^T,  x' (N,in) = dropout(x);  A (r,in), B (out,r).
   Called when the frozen layer has computed out = x W + b. */
static void lora_forward(void *context, const TapCall *c) {
    (void)context;
    const int i = added_at(&added, c);
    if (i < 0) return;
    const real *A = gpt2_weight(c->m, i), *B = gpt2_weight(c->m, i + 1);
    const real *x = dropped(c, tap_noise(c, lora.config.dropout, RANDOM_DROPOUT_LORA));
    const real *Z = down(c, x, A);
    projection_forward(c->out, Z, B, NULL, true, c->N, lora.config.r, c->OC);
}

/* Z is computed again, so nothing has to be saved between forward and backward. Of the five
   products here, over the layers of a block, this one takes a sixth of the time. */
static void lora_backward(void *context, const TapCall *c) {
    (void)context;
    const int i = added_at(&added, c);
    if (i < 0) return;
    const int N = c->N, in = c->IC, out = c->OC, r = lora.config.r;
    const real *A = gpt2_weight(c->m, i), *B = gpt2_weight(c->m, i + 1);
    float *dA = gpt2_gradient(c->m, i), *dB = gpt2_gradient(c->m, i + 1);
    const Noise noise = tap_noise(c, lora.config.dropout, RANDOM_DROPOUT_LORA);
    const real *x = dropped(c, noise);
    // out += Z B^T:  dB (out,r) += dout^T Z
    const real *Z = down(c, x, A);
    projection_backward_weight(dB, NULL, Z, c->dout, N, r, out);
    // Z = s x' A^T:  dZ (N,r) = s dout B,  dA (r,in) += dZ^T x'
    real *dZ = lora.low;  // in place of Z, which is not needed any more
    projection_backward_input(dZ, c->dout, B, false, N, r, out);
    scale(dZ, lora.scale, (size_t)N * (size_t)r);
    projection_backward_weight(dA, NULL, x, dZ, N, in, r);
    // x' = dropout(x):  dx (N,in) += dropout(dZ A), in place of x'. dx has the frozen layer's part
    if (!c->dinp) return;  // nothing below this layer trains
    if (noise.p > 0) {
        projection_backward_input(lora.wide, dZ, A, false, N, in, r);
        dropout_add(c->dinp, lora.wide, N, in, noise);
    } else {
        projection_backward_input(c->dinp, dZ, A, true, N, in, r);
    }
}

/* ---- mathematics: merging -------------------------------------------------------------------- */

/* W (in,out) += s A^T B^T, summed in double. Is the result finite? */
static bool add_product(float *W, const float *A, const float *B, size_t in, size_t out, size_t r) {
    bool finite = true;
#pragma omp parallel for reduction(&& : finite)
    for (size_t i = 0; i < in; i++)
        for (size_t o = 0; o < out; o++) {
            double sum = 0;
            for (size_t j = 0; j < r; j++) sum += (double)A[j * in + i] * (double)B[o * r + j];
            W[i * out + o] = (float)((double)W[i * out + o] + (double)lora.scale * sum);
            finite = finite && isfinite(W[i * out + o]);
        }
    return finite;
}

/* W (in,out) of one linear layer of merged += the product of the A and B of m. -1 with e filled: W
   is not finite, or the site is no linear layer, so that it has no W. */
static int merge_layer(GPT2 *merged, const GPT2 *m, int layer, int site, Error *e) {
    const int k = added.first[layer][site];
    if (k < 0) return 0;
    if (site >= SITES) return fail(e, "a LoRA outside the linear layers cannot be merged");
    const GPT2Tensor *t = &added.tensor[k];  // A, then B
    const size_t r = (size_t)t[0].shape[0], in = (size_t)t[0].shape[1];
    const size_t out = (size_t)t[1].shape[0];
    char name[64];
    int i = 0;
    snprintf(name, sizeof name, "h.%d.%s.weight", layer, site_names[site]);
    while (strcmp(gpt2_tensor(merged, i)->name, name)) i++;  // it exists: lora_plan made the site
    float *W = (float *)xmalloc(sizeof *W * in * out);
    float *A = added_read(m, k), *B = added_read(m, k + 1);
    gpt2_read(merged, i, GPT2_WEIGHT, 0, in * out, W);
    const bool finite = add_product(W, A, B, in, out, r);
    gpt2_write(merged, i, GPT2_WEIGHT, 0, in * out, W);
    free(W);
    free(A);
    free(B);
    if (finite) return 0;
    return fail(
        e, "%s with the update is not finite; the adapter is damaged, or its training diverged",
        name);
}

/* Adds the A and B of m to the weights of merged. -1 with e filled, as merge_layer. */
static int lora_merge(GPT2 *merged, const GPT2 *m, Error *e) {
    for (int layer = 0; layer < added.layers; layer++)
        for (int site = 0; site < TAP_SITES; site++)
            if (merge_layer(merged, m, layer, site, e)) return -1;
    return 0;
}

/* ---- the technique --------------------------------------------------------------------------- */

/* Plans the LoRA that the flags describe, or the one in dir, an adapter's directory (or NULL). */
static void plan(const Run *run, const char *dir) {
    Error e;
    LoraConfig l = {args.r, args.lora_alpha, args.lora_dropout, args.use_rslora, ""};
    if (strlen(args.target_modules) >= sizeof l.targets)
        die_usage("--target_modules is longer than %zu characters", sizeof l.targets - 1);
    strcpy(l.targets, args.target_modules);
    if (dir ? hf_lora_config(dir, &l, &e) : hf_check_lora(&l, &e)) die_usage("%s", e.text);
    if (lora_plan(&l, &run->config, &e)) die_usage("%s %s", dir ? dir : "--target_modules", e.text);
}

/* Prints the modules, PEFT's line of counts, and the bytes of the weights. */
static void lora_print(const GPT2Config *c) {
    printf("LoRA: r %d, alpha %g (s = %g), dropout %g, on\n", lora.config.r,
           (double)lora.config.alpha, (double)lora.scale, (double)lora.config.dropout);
    for (int site = 0; site < SITES; site++) {
        int in, out, count = 0;
        site_shape(c, site, &in, &out);
        for (int layer = 0; layer < added.layers; layer++) count += added.first[layer][site] >= 0;
        if (count)
            printf("  transformer.h.*.%-12s %2d of %d layers   A (%d,%d)   B (%d,%d)\n",
                   site_names[site], count, added.layers, lora.config.r, in, out, lora.config.r);
    }
    added_print(&added, c);
    added_print_bytes(&added, c);
}

/* How many numbers of scratch memory lora.wide and lora.low need. With memory: points them there.
 */
static size_t lora_scratch(const GPT2Limits *limits, const GPT2Config *c, real *memory) {
    const size_t N = (size_t)limits->tokens, r = (size_t)lora.config.r;
    const bool drops = limits->train && lora.config.dropout > 0;
    const int widest = added.tap.at[TAP_MLP_C_PROJ] ? max_int(c->n_inner, c->n_embd) : c->n_embd;
    const size_t wide = drops ? N * (size_t)widest : 0;
    if (memory) {
        lora.wide = memory;
        lora.low = memory + wide;
    }
    return wide + N * r;
}

/* The text of adapter_config.json. from: --model, the model that the adapter belongs to. */
static char *lora_text(const GPT2Config *c, const char *from) {
    (void)c;
    return hf_lora_text(&lora.config, from);
}

static const Technique technique = {
    .added = &added,
    .flags = &files,
    .weights = "adapter_model.safetensors",
    .loading =
        "the adapter is in %1$s: give it to --adapter, or in Python to "
        "PeftModel.from_pretrained(model, \"%1$s\")",
    .untrained = "every B",
    .per_site = 2,                      // A, B
    .zero_from = 1,                     // B is zero until it is trained
    .training_starts_untrained = true,  // from an adapter in which every B is zero
    .plan = plan,
    .print = lora_print,
    .scratch = lora_scratch,
    .init = lora_init,
    .forward = lora_forward,
    .backward = lora_backward,
    .config_text = lora_text,
    .merge = lora_merge,
};

/* ---- the program ----------------------------------------------------------------------------- */

static const Program program = {
    .name = "lora",
    .about =
        "Fine-tuning of a frozen GPT-2 by low-rank matrices (LoRA), on a task or on plain text.\n"
        "With --adapter, and --prompt, --chat or --merge, it uses a LoRA that was trained.",
    .flags = flags,
    .lines.program =
        COMMAND_LINE("--per_device_train_batch_size=2", "--gradient_accumulation_steps=4",
                     "--num_train_epochs=5", "--learning_rate=2e-4", "--warmup_steps=20",
                     "--dataloader_drop_last"),
    // The built-in example, if none of example_unless is given, learns facts in half a minute,
    // without dropout: ten epochs of a few hundred short records do not overfit at rank 16
    .lines.example = COMMAND_LINE(
        "--model=test/tiny", "--data=test/tiny/domain.jsonl", "--eval=test/tiny/domain-eval.jsonl",
        "--per_device_train_batch_size=8", "--gradient_accumulation_steps=1", "--max_steps=400",
        "--learning_rate=3e-3", "--adam_beta2=0.99", "--lr_scheduler_type=cosine",
        "--warmup_steps=20", "--logging_steps=50", "--eval_steps=200", "--eval_samples=128",
        "--lora_dropout=0"),
    .lines.example_unless = "model data adapter prompt chat",
    .lines.uses =
        "  ./lora --model models/gpt2 --data my.jsonl --output mine\n"
        "      trains; --load_in_4bit keeps the frozen weights in four bits (QLoRA)\n"
        "  ./lora --model models/gpt2 --adapter mine --merge merged --verify\n"
        "      makes an ordinary model of it; --chat instead of --merge talks to it\n",
    .needs = "model data",  // unless it is the example
    .chat = &task.chat,
    .technique = &technique,
};

/* ---- the loop -------------------------------------------------------------------------------- */

int main(int argc, char **argv) {
    Run run = run_begin(&program, argc, argv);
    task_load(&task, &run);
    Network network = {.role = "model", .limits = task_limits(&task, &run), .trains = true};
    networks_open(&run, (Network *[]){&network, NULL});  // freezes the model, and adds A and B
    GPT2 *model = network.model;
    task_begin(&task, &run, model);  // measures the model before training
    const int B = run.per_device_train_batch_size;
    if (run_measures_again(&run)) task_evaluate(&task, &run, model);

    while (run_next(&run)) {
        // 1. Draw n examples for this step. M is the number of their tokens that are scored
        double loss = 0, M;
        const int n = task_examples(&task, &run, &M);
        // 2. For each micro-batch of B examples, end to end (the last one may be smaller): its part
        //    of the loss, which is a mean over M. So the gradients add up to those of the step
        int i = 0;
        for (; i < n && !run_interrupted(); i += task.ragged.batch.S) {
            const Batch *batch = task_batch(&task, i, B);
            const int *target = task.ragged.target;  // the next token, or -1: not scored
            gpt2_forward(model, batch, &task.noise);
            gpt2_logprob(model, target, 1, task.logp, task.entropy, task.best);  // at temperature 1
            // dlogp = dL/dlogp: -1/M where a token is scored, 0 elsewhere
            loss += cross_entropy(batch->N, target, task.logp, M, task.dlogp);
            gpt2_backward(model, task.dlogp, NULL, NULL);  // L has no entropy and no scalar head
            task_watch(&task, &run);  // logs the means of -logp, entropy, best == target
        }
        if (i < n) break;  // a signal: a resumed run begins the step anew
        // 3. Clip the gradient, take a step of AdamW, clear the gradient
        task_optimise(&task, &run, model, loss);
        // 4. Measure the held-out records. OUTPUT/best holds the model with the lowest loss
        if (run_should_evaluate(&run)) task_evaluate(&task, &run, model);
    }

    task_report(&task, &run, model);
    task_free(&task);
    return run_finish(&run);
}
