/*
 * adapter.c - bottleneck adapters: fine-tune a frozen GPT-2 through small layers between its own.
 *
 * An adapter projects an activation down to a few channels and up again:
 *
 *     A(x) = up(dropout(act(down(x))))          down (D,C), up (C,D), each with a bias
 *
 * These are all that trains. D is 8 to 256, where C is hundreds or thousands. Let r be the residual
 * stream before a sublayer (attention or MLP), and f the output of the sublayer. GPT-2 itself
 * computes r' = r + f. The adapter's output is added to that:
 *
 *     houlsby     r' = r + f + A(f)        after attention and MLP (Houlsby et al. 2019, section 2)
 *     pfeiffer    r' = r + f + A(r + f)    after the MLP alone (Pfeiffer et al. 2021, section 3.2)
 *
 * The adapters library calls them double_seq_bn and seq_bn. down starts random and up starts at
 * zero, so the first step starts from the model itself. Unlike LoRA's, the update is not linear in
 * x. It cannot be merged into a weight, so its two products remain in every use of the model.
 *
 * Read it next to lora.c with diff: the loop is the same, and the model is frozen. The network
 * calls adapter_forward and adapter_backward at its sites (common/model/tap.h). The result is a
 * directory in the format of the adapters library (Poth et al. 2023).
 *
 * Left out: adapters parallel to a sublayer, stacked adapters, gates, and scales other than 1.
 * Files that use them are refused.
 */
#include "common/posttrain.h"
#include "common/files/peft.h"     // AdapterHub's adapter_config.json
#include "common/model/kernels.h"  // products (lora.c explains them), activations, dropout
#include "common/model/tap.h"      // how the technique adds to the network
#include "common/run/technique.h"  // added tensors, adapters in files

/* ---- flags ----------------------------------------------------------------------------------- */

static Task task;  // the flags of a supervised task, its records, and arrays for a micro-batch
static AdapterFlags files;  // --adapter

static struct {
    Bottleneck form;  // what the flags describe, and then the adapter that is used; form.dim is D
    float reduction_factor;
} args = {.form.name = "adapter"};

static const Flag flags[] = {
    TITLE("Bottleneck adapters"),
    TASK_FLAGS(task),
    // Off, unlike in full_ft.c, for the reasons given in lora.c
    GRADIENT_CHECKPOINTING_FLAG(task.gradient_checkpointing, "false"),
    {"adapter_dim", NUMBER(args.form.dim, "64", 1, 65536),
     "The number of channels of the bottleneck."},
    {"reduction_factor", NUMBER(args.reduction_factor, "0", 0, 65536),
     "Divide the model's channels by this, rounded down, to get those of the bottleneck; 0 takes "
     "--adapter_dim."},
    {"placement", CHOICE(args.form.placement, "houlsby", "houlsby|pfeiffer"),
     "Put adapters after attention and MLP (houlsby), or after the MLP alone (pfeiffer)."},
    {"activation", CHOICE(args.form.activation, "relu", "relu|gelu|silu"),
     "The activation in the bottleneck; gelu is the tanh form, and silu is also called swish."},
    {"adapter_dropout", NUMBER(args.form.dropout, "0.1", 0, 0.99),
     "The dropout probability after the activation in the bottleneck."},
    {"init", CHOICE(args.form.init, "xavier", "xavier|bert"),
     "Start with down uniform by its shape and up zero (xavier), or with both normal with standard "
     "deviation 0.02 (bert)."},
    {"train_layernorm", SWITCH(args.form.norms, "false"),
     "Also train the model's layer norms, as Houlsby et al. did."},
    {"adapter", TEXT(files.adapter, NULL),
     "Start from the adapter in this directory, in AdapterHub's format; flags that describe an "
     "adapter are then not needed and must not contradict it.",
     .may_change_on_resume = true, .conflicts = "init"},
    ALLOW_UNTRAINED_FLAG(files, "every up projection"),  // "... because that is zero"
    CHAT_FLAGS(task.chat, "dump_tokens"),  // --prompt, --chat; --dump_tokens conflicts with them
    {0},
};

/* ---- mathematics: which layers --------------------------------------------------------------- */

/* An adapter's tensors, as in nn.Linear: down (D,C), its bias (D), up (C,D), its bias (C). */
enum { DOWN_W, DOWN_B, UP_W, UP_B, PER_ADAPTER };

static const char *const tensor_names[PER_ADAPTER] = {
    "adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias"};

static const struct {
    const char *name;
    void (*forward)(real *out, const real *inp, size_t n);
    void (*backward)(real *dout, real *inp, size_t n);
} activations[] = {[RELU] = {"relu", relu_forward, relu_backward},
                   [GELU] = {"gelu", gelu_forward, gelu_backward},
                   [SILU] = {"silu", silu_forward, silu_backward}};

static const char *const placements[] = {[HOULSBY] = "houlsby", [PFEIFFER] = "pfeiffer"};

static Added added;  // PER_ADAPTER tensors each; k here is i = gpt2_own_tensors(m) + k in a model

static struct {
    int sites;              // adapters per layer: after attention and MLP, or after the MLP alone
    size_t x_size, z_size;  // N C and N D
    real *x, *z;  // (layers,sites) saved for backward: (N,C) the input, (N,D) down's output
    real *a;      // (N,D) scratch. real: the type of weights and activations, on the device
} adapter;

/* Adds an adapter after the MLP of every layer of a model of shape c, and with houlsby also after
   the attention. The names of the tensors are the library's. */
static void adapter_plan(const GPT2Config *c) {
    const int C = c->n_embd, D = args.form.dim;
    const int shape[PER_ADAPTER][2] = {{D, C}, {D, 0}, {C, D}, {C, 0}};
    adapter.sites = args.form.placement == HOULSBY ? 2 : 1;
    added_begin(&added, c->n_layer);
    for (int layer = 0; layer < c->n_layer; layer++)
        for (int site = 2 - adapter.sites; site < 2; site++) {
            added_site(&added, layer, site ? TAP_MLP : TAP_ATTN);
            for (int k = 0; k < PER_ADAPTER; k++)
                added_append(&added, shape[k][0], shape[k][1],
                             "transformer.h.%d.%s_adapters.adapters.%s.%s", layer,
                             site ? "output" : "attention", args.form.name, tensor_names[k]);
        }
    added.trains = args.form.norms ? TRAIN_NORMS : TRAIN_NONE;  // of the model's own tensors
}

/* ---- mathematics: start ---------------------------------------------------------------------- */

/* xavier: down is uniform in +-sqrt(6 / (C + D)) (Glorot and Bengio 2010), and up is zero. bert:
   both are N(0, 0.02). Every added tensor is zero already. */
static void adapter_init(GPT2 *m, uint64_t seed) {
    const float bound = sqrtf(6.0f / (float)(gpt2_config(m)->n_embd + args.form.dim));
    for (int k = 0; k < added.n; k++) {
        const GPT2Tensor *t = &added.tensor[k];
        const uint32_t tensor = (uint32_t)(gpt2_own_tensors(m) + k);  // has its own random stream
        const bool bert = args.form.init == BERT, is_down = k % PER_ADAPTER == DOWN_W;
        if (t->ndim == 1 || (!is_down && !bert)) continue;
        float *values = (float *)xmalloc(sizeof *values * t->n);
        for (size_t j = 0; j < t->n; j++) {
            const Random4 r = random4(seed, RANDOM_INIT, tensor, 0, 0, (uint32_t)j);
            values[j] = bert ? 0.02f * random_normal(r.v[0], r.v[1])
                             : bound * (2 * random_uniform(r.v[0]) - 1);
        }
        added_write(m, k, values);
        free(values);
    }
}

/* ---- mathematics: forward and backward ------------------------------------------------------- */

/* Where x (N,C) and z (N,D) of the call's adapter are saved. */
static void find_saved(const TapCall *c, real **x, real **z) {
    const int site = c->site == TAP_MLP ? adapter.sites - 1 : 0;
    const size_t at = (size_t)max_int(c->save_at, 0);
    const size_t saved = at * (size_t)adapter.sites + (size_t)site;
    *x = adapter.x + saved * adapter.x_size;
    *z = adapter.z + saved * adapter.z_size;
}

/* f (N,C) += up(a),  a (N,D) = dropout(act(z)),  z (N,D) = down(x),
   x (N,C) = f (houlsby) or r + f (pfeiffer). Called when the sublayer has computed f. */
static void adapter_forward(void *context, const TapCall *c) {
    (void)context;
    real *x, *z, *a = adapter.a, *f = c->out;
    const int i = added_at(&added, c), N = c->N, C = c->OC, D = args.form.dim;
    const size_t n = (size_t)N * (size_t)C;
    find_saved(c, &x, &z);
    if (args.form.placement == PFEIFFER)
        add_activations(x, c->residual, f, n);
    else
        device_copy(x, f, sizeof(real) * n);
    projection_forward(z, x, gpt2_weight(c->m, i + DOWN_W), gpt2_weight(c->m, i + DOWN_B), false, N,
                       C, D);
    activations[args.form.activation].forward(a, z, (size_t)N * (size_t)D);
    dropout(a, N, D, tap_noise(c, args.form.dropout, RANDOM_DROPOUT_ADAPTER));
    projection_forward(f, a, gpt2_weight(c->m, i + UP_W), gpt2_weight(c->m, i + UP_B), true, N, D,
                       C);
}

/* dout, the gradient with respect to f + up(a), becomes the one with respect to f: the sum passes
   it on unchanged, and the gradient through the adapter is added. */
static void adapter_backward(void *context, const TapCall *c) {
    (void)context;
    real *x, *z, *d = adapter.a;  // d (N,D): da, then dz
    const int i = added_at(&added, c), N = c->N, C = c->OC, D = args.form.dim;
    const real *down = gpt2_weight(c->m, i + DOWN_W), *up = gpt2_weight(c->m, i + UP_W);
    float *ddown = gpt2_gradient(c->m, i + DOWN_W), *ddown_b = gpt2_gradient(c->m, i + DOWN_B);
    float *dup = gpt2_gradient(c->m, i + UP_W), *dup_b = gpt2_gradient(c->m, i + UP_B);
    const Noise noise = tap_noise(c, args.form.dropout, RANDOM_DROPOUT_ADAPTER);
    find_saved(c, &x, &z);
    // out = f + up(a):  da = dout up
    projection_backward_input(d, c->dout, up, false, N, D, C);
    // a = dropout(act(z)):  dz = act'(z) dropout(da);  z becomes act(z), then a
    dropout(d, N, D, noise);
    activations[args.form.activation].backward(d, z, (size_t)N * (size_t)D);
    dropout(z, N, D, noise);
    // dup (C,D) += dout^T a;  z = down(x):  ddown (D,C) += dz^T x
    projection_backward_weight(dup, dup_b, z, c->dout, N, D, C);
    projection_backward_weight(ddown, ddown_b, x, d, N, C, D);
    if (args.form.placement == PFEIFFER) {
        // x = r + f:  dx = dz down takes the place of x;  dr += dx,  df += dx
        projection_backward_input(x, d, down, false, N, C, D);
        add_activations(c->dresidual, c->dresidual, x, (size_t)N * (size_t)C);
        add_activations(c->dout, c->dout, x, (size_t)N * (size_t)C);
    } else {
        // x = f:  df += dz down
        projection_backward_input(c->dout, d, down, true, N, C, D);
    }
}

/* ---- the technique --------------------------------------------------------------------------- */

/* Ends the program with 2 if flags that were given contradict the form of the adapter in dir. */
static void check_flags(const Run *run, const Bottleneck *saved, const char *dir) {
    if ((run_given(run, "adapter_dim") || args.reduction_factor > 0) && args.form.dim != saved->dim)
        die_usage(
            "%s: this adapter has a bottleneck of %d, and the flags say %d; leave out "
            "--adapter_dim and --reduction_factor",
            dir, saved->dim, args.form.dim);
    check_agrees(run, "placement", placements[saved->placement], dir);
    check_agrees(run, "activation", activations[saved->activation].name, dir);
    if (args.form.norms && !saved->norms)
        die_usage("%s: this adapter is without the layer norms; leave out --train_layernorm", dir);
}

/* Plans the adapters that the flags describe, or those in dir. Dropout and the start are no part of
   an adapter in a directory, so they are the flags' in both cases. */
static void plan(const Run *run, const char *dir) {
    Error e;
    Bottleneck saved;
    if (args.reduction_factor > 0)
        args.form.dim =
            (int)fmaxf(fminf((float)run->config.n_embd / args.reduction_factor, 1e6f), 1);
    if (dir) {
        if (hf_bottleneck(dir, &run->config, &saved, &e)) die_usage("%s", e.text);
        check_flags(run, &saved, dir);
        saved.dropout = args.form.dropout;
        saved.init = args.form.init;
        args.form = saved;
        fprintf(chat_asked(&task.chat) ? stderr : stdout,
                "%s: an adapter of AdapterHub's, \"%s\"\n", dir, saved.name);
    } else if (hf_check_bottleneck(&args.form, &run->config, &e)) {
        die_usage("--adapter_dim or --reduction_factor: %s", e.text);
    }
    args.reduction_factor = 0;
    adapter_plan(&run->config);
}

/* Prints the adapters, and PEFT's line of counts. */
static void adapter_print(const GPT2Config *c) {
    const Bottleneck *b = &args.form;
    printf("adapters: %s, %d -> %d -> %d, %s, dropout %g, after %s of all %d layers%s\n",
           placements[b->placement], c->n_embd, b->dim, c->n_embd, activations[b->activation].name,
           (double)b->dropout, b->placement == HOULSBY ? "attention and MLP" : "the MLP",
           c->n_layer, b->norms ? "; and the layer norms" : "");
    added_print(&added, c);
}

/* As Technique.scratch: x, z and a. Without training, and with gradient checkpointing, all layers
   share one x and z per site. */
static size_t adapter_scratch(const GPT2Limits *limits, const GPT2Config *c, real *memory) {
    const bool shared = !limits->train || limits->gradient_checkpointing;
    const size_t saved = (size_t)adapter.sites * (shared ? 1 : (size_t)c->n_layer);
    const size_t N = (size_t)limits->tokens, x = N * (size_t)c->n_embd;
    const size_t z = N * (size_t)args.form.dim;
    if (memory) {
        adapter.x_size = x;
        adapter.z_size = z;
        adapter.x = memory;
        adapter.z = adapter.x + saved * x;
        adapter.a = adapter.z + saved * z;
    }
    return saved * (x + z) + z;
}

static char *adapter_text(const GPT2Config *c, const char *from) {
    return hf_bottleneck_text(&args.form, c, from);
}

static const Technique technique = {
    .added = &added,
    .flags = &files,
    .weights = "adapter.safetensors",
    .loading =
        "the adapter is in %1$s: give it to --adapter, or in Python to "
        "load_adapter(\"%1$s\", use_safetensors=True) after adapters.init(model)",
    .untrained = "every up projection",
    .per_site = PER_ADAPTER,
    .zero_from = UP_W,  // up and its bias are zero until they are trained
    .plan = plan,
    .print = adapter_print,
    .scratch = adapter_scratch,
    .init = adapter_init,
    .forward = adapter_forward,
    .backward = adapter_backward,
    .config_text = adapter_text,
};

/* ---- the program ----------------------------------------------------------------------------- */

static const Program program = {
    .name = "adapter",
    .about =
        "Fine-tuning of a frozen GPT-2 by bottleneck adapters, on a task or on plain text.\n"
        "With --adapter, and --prompt or --chat, it uses an adapter that was trained.",
    .flags = flags,
    .lines.program =
        COMMAND_LINE("--per_device_train_batch_size=2", "--gradient_accumulation_steps=4",
                     "--num_train_epochs=6", "--learning_rate=1e-4", "--warmup_steps=50",
                     "--dataloader_drop_last"),
    // The built-in example, if none of example_unless is given, learns facts in half a minute. It
    // needs no dropout: fifteen epochs of a few hundred short records do not overfit
    .lines.example = COMMAND_LINE(
        "--model=test/tiny", "--data=test/tiny/domain.jsonl", "--eval=test/tiny/domain-eval.jsonl",
        "--per_device_train_batch_size=16", "--gradient_accumulation_steps=1", "--max_steps=300",
        "--learning_rate=1.5e-3", "--adam_beta2=0.99", "--lr_scheduler_type=cosine",
        "--warmup_steps=20", "--logging_steps=50", "--eval_steps=150", "--eval_samples=128",
        "--adapter_dropout=0"),
    .lines.example_unless = "model data adapter prompt chat",
    .lines.uses =
        "  ./adapter --model models/gpt2 --data my.jsonl --output mine\n"
        "      trains small layers between frozen ones\n"
        "  ./adapter --model models/gpt2 --adapter mine --chat\n"
        "      talks to the result\n",
    .needs = "model data",  // unless it is the example
    .chat = &task.chat,
    .technique = &technique,
};

/* ---- the loop -------------------------------------------------------------------------------- */

int main(int argc, char **argv) {
    Run run = run_begin(&program, argc, argv);
    task_load(&task, &run);
    Network network = {.role = "model", .limits = task_limits(&task, &run), .trains = true};
    networks_open(&run, (Network *[]){&network, NULL});  // freezes the model, adds adapters
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
