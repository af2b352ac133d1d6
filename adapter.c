/*
 * adapter.c - bottleneck adapters: train two small layers after the attention and the MLP of every layer, and nothing else.
 *
 * An adapter squeezes what the network has computed through m channels and adds what comes out (Houlsby et al. 2019, section 2):
 *
 *     A(x) = up(dropout(act(down(x))))                  down: C -> m,  up: m -> C,  both with bias;  m is 64 where C is 768
 *
 * With r the residual stream before a sublayer and f what the sublayer (attention or MLP) adds to it:
 *
 *     houlsby     r' = r + f + A(f)                     after attention and MLP         (the adapters library's double_seq_bn)
 *     pfeiffer    r' = r + f + A(r + f)                 after the MLP alone             (seq_bn; Pfeiffer et al. 2021)
 *
 * up starts at zero, so that the start is the base model to the bit. The base is frozen: it has no gradient and no moments, lies in its mapped
 * file, and is never written. The loss and the loop are those of full_ft.c; what differs is the section "the adapters". What is
 * saved is the adapters alone, in the format of the adapters library (Poth et al. 2023), a hundredth of the model.
 *
 * Left out: adapters in parallel to a sublayer, their composition (stacks, fusion), learned scaling, and merging, which a nonlinear layer forbids.
 */
#include "common/gpt2.h"   // the model: gpt2_forward, gpt2_logprob, gpt2_backward, gpt2_step
#include "common/hf.h"     // hf_config, hf_load, hf_save_added, hf_bottleneck
#include "common/kernels.h" // the mathematics of an adapter
#include "common/run.h"    // flags, schedule, log, checkpoints
#include "common/tap.h"    // how it gets inside the network
#include "common/task.h"   // records as examples, held-out figures
#include "common/util.h"   // die, xmalloc

/* ---- flags ----------------------------------------------------------------------------------------------------- */

static const char about[] = "bottleneck adapters: a frozen GPT-2 learns through small layers between its own. Without arguments: a small built-in example.";

static Task task;

typedef struct {
    const char *adapter, *placement, *activation, *init, *dropout;
    int adapter_dim;
    float reduction_factor, adapter_dropout;
    bool train_layernorm, gradient_checkpointing;
} Args;

static Args args;

static const Flag flags[] = {
    {"", FLAG_TITLE, NULL, .help = "Bottleneck adapters"},
    {"adapter", FLAG_STRING, &args.adapter, .free_on_resume = true,
     .help = "directory of an adapter to go on from; its own form takes the place of the next four"},
    {"adapter_dim", FLAG_INT, &args.adapter_dim, .low = 1, .high = 65536, .help = "channels of the bottleneck"},
    {"reduction_factor", FLAG_FLOAT, &args.reduction_factor, .high = 65536, .help = "or the model's channels by those, rounded down; 0: --adapter_dim counts"},
    {"placement", FLAG_CHOICE, &args.placement, .help = "houlsby|pfeiffer: after attention and MLP, or after the MLP alone"},
    {"activation", FLAG_CHOICE, &args.activation, .help = "relu|gelu|silu: in the bottleneck; gelu is the tanh form, silu also called swish"},
    {"adapter_dropout", FLAG_FLOAT, &args.adapter_dropout, .high = 0.99, .help = "probability in the bottleneck, after the activation"},
    {"init", FLAG_CHOICE, &args.init, .help = "xavier|bert: down uniform by its shape and up zero, or both normal with deviation 0.02"},
    {"train_layernorm", FLAG_BOOL, &args.train_layernorm, .help = "train the model's layer norms too, as Houlsby et al. did"},
    TASK_FLAGS(task),
    {"dropout", FLAG_STRING, &args.dropout, .bare = "config",
     .help = "probability on embeddings, attention and residuals; without a value: those of config.json"},
    {"gradient_checkpointing", FLAG_BOOL, &args.gradient_checkpointing,
     .help = "keep one activation a layer and compute the others again: less memory, more time"},
    {0},
};

/* The defaults for a model and data of one's own; or those of the built-in example, which learns something in half a minute. */
static Run defaults(bool example) {
    Run run = run_defaults();
    run.per_device_train_batch_size = 2;
    run.gradient_accumulation_steps = 4;
    run.num_train_epochs = 6;
    run.learning_rate = 1e-4f;
    run.warmup_steps = 50;
    run.weight_decay = 0.01f;
    run.save_total_limit = 2;
    run.dataloader_drop_last = true;
    task = task_defaults();
    args = (Args){.placement = "houlsby", .activation = "relu", .init = "xavier", .dropout = "0", .adapter_dim = 64, .adapter_dropout = 0.1f};
    if (example) {
        run.model = run_example_file("tiny");
        run.data = run_example_file("tiny/domain.jsonl");
        run.eval = run_example_file("tiny/domain-eval.jsonl");
        run.per_device_train_batch_size = 16;
        run.gradient_accumulation_steps = 1;
        run.max_steps = 400;
        run.learning_rate = 6e-3f;
        run.adam_beta2 = 0.99f;
        run.lr_scheduler_type = "cosine";
        run.warmup_steps = 20;
        run.eval_steps = 200;
        run.logging_steps = 50;
        task.eval_samples = 128;
        task.max_new_tokens = 48;
    }
    return run;
}

/* ---- the adapters ---------------------------------------------------------------------------------------------- */

/* The tensors of one adapter, in the order and the layout of the file: down (m,C) (m), up (C,m) (C). */
enum { DOWN_W, DOWN_B, UP_W, UP_B, PER_ADAPTER };

static const struct {
    const char *flag, *name;     // in --activation; in adapter_config.json
    void (*forward)(real *out, const real *inp, size_t n);
    void (*backward)(real *dout, real *inp, size_t n);
} activations[] = {{"relu", "relu", relu_forward, relu_backward},
                   {"gelu", "gelu_new", gelu_forward, gelu_backward},
                   {"silu", "swish", silu_forward, silu_backward}};

/* What every layer's adapters share: their form, and memory (device) for what backward needs, allocated once. */
static struct {
    Bottleneck form;
    int activation;              // index into activations
    int per_layer;               // adapters of a layer: 2 (attention, MLP) or 1 (MLP)
    size_t x_size, z_size;       // (tokens,C) and (tokens,m)
    void *memory;
    size_t bytes;
    real *x, *z;                 // (places, per_layer) of these: the adapter's input, and the bottleneck before its activation
    real *a;                     // (tokens,m) the bottleneck after it, or its gradient
    real *of[PER_ADAPTER];       // of the adapter at hand: weights
    float *d_of[PER_ADAPTER];    // and their gradients
} adapters;

/* Its own form, or that of the adapter in `from`, with which the flags that were given must agree. args becomes what it is. */
static void choose_form(const char *from, const GPT2Config *config, Args asked) {
    Error e;
    Bottleneck b = {.name = "adapter", .dim = args.adapter_dim, .norms = args.train_layernorm};
    AdapterFormat format;
    if (args.reduction_factor > 0) b.dim = (int)fmaxf(1, floorf((float)config->n_embd / args.reduction_factor));
    for (size_t i = 0; i < sizeof activations / sizeof *activations; i++)
        if (!strcmp(args.activation, activations[i].flag)) b.non_linearity = activations[i].name;
    b.mh_adapter = !strcmp(args.placement, "houlsby");
    if (from) {
        if (hf_adapter_format(from, &format, &e)) die_usage("%s", e.text);
        if (format == ADAPTER_PEFT) die_usage("%s holds an adapter of PEFT's (LoRA and its kind), not one of AdapterHub's; ./lora takes it", from);
        int dim = b.dim;
        if (hf_bottleneck(from, config, &b, &e)) die_usage("%s", e.text);
        printf("%s: an adapter of AdapterHub's, \"%s\"\n", from, b.name);
        if ((asked.adapter_dim || asked.reduction_factor > 0) && dim != b.dim)
            die_usage("the adapter in %s has %d channels in its bottleneck, and the flags ask for %d; leave out --adapter_dim and --reduction_factor", from,
                      b.dim, dim);
        if (asked.placement && b.mh_adapter != !strcmp(asked.placement, "houlsby"))
            die_usage("the adapter in %s is placed as %s, not as --placement %s", from, b.mh_adapter ? "houlsby" : "pfeiffer", asked.placement);
        if (asked.train_layernorm && !b.norms) die_usage("the adapter in %s was trained without layer norms: --train_layernorm cannot go on from it", from);
    }
    b.original_ln_before = !b.mh_adapter;
    for (adapters.activation = 0; strcmp(activations[adapters.activation].name, b.non_linearity); adapters.activation++) {}
    if (asked.activation && strcmp(asked.activation, activations[adapters.activation].flag))
        die_usage("the adapter in %s has the activation %s, not --activation %s", from, activations[adapters.activation].flag, asked.activation);
    b.bert = !strcmp(args.init, "bert");
    b.dropout = args.adapter_dropout;
    adapters.form = b;
    adapters.per_layer = b.mh_adapter ? 2 : 1;
    args.adapter_dim = b.dim, args.reduction_factor = 0;
    args.placement = b.mh_adapter ? "houlsby" : "pfeiffer";
    args.activation = activations[adapters.activation].flag;
    args.train_layernorm = b.norms;
}

/* The tensors that the adapters add, named as in their file; *n of them. To be freed. */
static GPT2Tensor *add_tensors(const GPT2Config *config, int *n) {
    static const char *const names[PER_ADAPTER] = {"adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias"};
    const int C = config->n_embd, m = adapters.form.dim, shapes[PER_ADAPTER][3] = {{2, m, C}, {1, m, 1}, {2, C, m}, {1, C, 1}};
    *n = config->n_layer * adapters.per_layer * PER_ADAPTER;
    GPT2Tensor *table = (GPT2Tensor *)xcalloc((size_t)*n, sizeof *table), *t = table;
    for (int l = 0; l < config->n_layer; l++)
        for (int site = 2 - adapters.per_layer; site < 2; site++)
            for (int k = 0; k < PER_ADAPTER; k++, t++) {
                snprintf(t->name, sizeof t->name, "transformer.h.%d.%s_adapters.adapters.%s.%s", l, site ? "output" : "attention", adapters.form.name, names[k]);
                t->ndim = shapes[k][0], t->shape[0] = shapes[k][1], t->shape[1] = shapes[k][2];
                t->n = (size_t)shapes[k][1] * (size_t)shapes[k][2];
            }
    return table;
}

/* Draws the weights (biases are 0). xavier: down U(-b, b), b = sqrt(6 / (C + m)) (Glorot & Bengio 2010), up 0. bert: both N(0, 0.02). */
static void init_tensors(GPT2 *model, uint64_t seed) {
    const int own = gpt2_own_tensors(model);
    const float bound = sqrtf(6.0f / (float)(gpt2_config(model)->n_embd + adapters.form.dim));
    for (int i = own; i < gpt2_tensors(model); i++) {
        const GPT2Tensor *t = gpt2_tensor(model, i);
        const bool down = (i - own) % PER_ADAPTER == DOWN_W;
        if (t->ndim == 1 || !(down || adapters.form.bert)) continue;
        float *w = (float *)xmalloc(sizeof *w * t->n);
        for (size_t j = 0; j < t->n; j++) {
            Random4 r = random4(seed, RANDOM_INIT, (uint32_t)i, 0, (uint32_t)(j >> 32), (uint32_t)j);
            w[j] = adapters.form.bert ? 0.02f * random_normal(r.v[0], r.v[1]) : bound * (2 * random_uniform(r.v[0]) - 1);
        }
        gpt2_write(model, i, GPT2_WEIGHT, 0, t->n, w);
        free(w);
    }
}

/* Bytes for what backward needs; with gradient checkpointing, and without training, one place serves all layers. */
static size_t adapter_memory(const GPT2Config *config, const GPT2Limits *limits) {
    const size_t places = limits->train && !limits->gradient_checkpointing ? (size_t)config->n_layer : 1;
    adapters.x_size = (size_t)limits->tokens * (size_t)config->n_embd;
    adapters.z_size = (size_t)limits->tokens * (size_t)adapters.form.dim;
    return sizeof(real) * ((adapters.x_size + adapters.z_size) * places * (size_t)adapters.per_layer + adapters.z_size);
}

static void adapter_reserve(const GPT2Config *config, const GPT2Limits *limits) {
    adapters.bytes = adapter_memory(config, limits);
    if (!(adapters.memory = device_alloc(adapters.bytes))) die("out of memory for the adapters' %zu MB of activations", adapters.bytes / 1000000);
    size_t places = adapters.bytes / sizeof(real) / (adapters.x_size + adapters.z_size);
    adapters.x = (real *)adapters.memory;
    adapters.z = adapters.x + places * adapters.x_size;
    adapters.a = adapters.z + places * adapters.z_size;
}

/* Points x and z at the place of this call's adapter, and `of` at its tensors. */
static void enter(const TapCall *call, real **x, real **z) {
    const int which = call->site == TAP_MLP ? adapters.per_layer - 1 : 0;
    const size_t place = (size_t)((call->keep < 0 ? 0 : call->keep) * adapters.per_layer + which);
    const int first = gpt2_own_tensors(call->m) + (call->layer * adapters.per_layer + which) * PER_ADAPTER;
    *x = adapters.x + place * adapters.x_size;
    *z = adapters.z + place * adapters.z_size;
    for (int k = 0; k < PER_ADAPTER; k++) adapters.of[k] = gpt2_weight(call->m, first + k), adapters.d_of[k] = gpt2_gradient(call->m, first + k);
}

/* out (N,C) = f on entry, f + A(x) on return: the model then adds r. */
static void tap_forward(void *context, const TapCall *call) {
    const int N = call->N, C = call->OC, m = adapters.form.dim;
    real *x, *z, *a = adapters.a, *const *of = adapters.of;
    (void)context;
    enter(call, &x, &z);
    // houlsby: x = f;  pfeiffer: x = r + f
    if (adapters.form.original_ln_before) add_activations(x, call->residual, call->out, (size_t)N * (size_t)C);
    else device_copy(x, call->out, sizeof(real) * (size_t)N * (size_t)C);
    // z = down(x);  a = dropout(act(z));  out = f + up(a)
    projection_forward(z, x, of[DOWN_W], of[DOWN_B], false, N, C, m);
    activations[adapters.activation].forward(a, z, (size_t)N * (size_t)m);
    dropout(a, N, m, tap_noise(call, adapters.form.dropout, RANDOM_DROPOUT_ADAPTER));
    projection_forward(call->out, a, of[UP_W], of[UP_B], true, N, m, C);
}

/* dout (N,C): by f + A(x) on entry, by f on return. */
static void tap_backward(void *context, const TapCall *call) {
    const int N = call->N, C = call->OC, m = adapters.form.dim;
    const Noise noise = tap_noise(call, adapters.form.dropout, RANDOM_DROPOUT_ADAPTER);
    real *x, *z, *d = adapters.a, *const *of = adapters.of;
    float *const *d_of = adapters.d_of;
    (void)context;
    enter(call, &x, &z);
    // out = f + up(a):  da = dout up
    projection_backward_input(d, call->dout, of[UP_W], false, N, m, C);
    // a = dropout(act(z)):  dz = act'(z) dropout(da); then z becomes act(z), and a
    dropout(d, N, m, noise);
    activations[adapters.activation].backward(d, z, (size_t)N * (size_t)m);
    dropout(z, N, m, noise);
    projection_backward_weight(d_of[UP_W], d_of[UP_B], z, call->dout, N, m, C);
    // z = down(x):  dx = dz down
    projection_backward_weight(d_of[DOWN_W], d_of[DOWN_B], x, d, N, C, m);
    if (!adapters.form.original_ln_before) {   // x = f
        projection_backward_input(call->dout, d, of[DOWN_W], true, N, C, m);
        return;
    }
    // x = r + f:  both get dx, which takes the place of x
    projection_backward_input(x, d, of[DOWN_W], false, N, C, m);
    add_activations(call->dout, call->dout, x, (size_t)N * (size_t)C);
    add_activations(call->dresidual, call->dresidual, x, (size_t)N * (size_t)C);
}

/* The added parameters, and the model's own that train with them. */
static size_t trained_parameters(const GPT2Config *c) {
    const size_t C = (size_t)c->n_embd, m = (size_t)adapters.form.dim, L = (size_t)c->n_layer;
    return L * (size_t)adapters.per_layer * (2 * C * m + m + C) + (adapters.form.norms ? (2 * L + 1) * 2 * C : 0);
}

static size_t base_parameters(const GPT2Config *c) {
    const size_t C = (size_t)c->n_embd, F = (size_t)c->n_inner;
    return ((size_t)c->vocab_size + (size_t)c->n_positions) * C + (size_t)c->n_layer * (4 * C * C + 2 * C * F + F + 9 * C) + 2 * C;
}

/* 1234567 as 1,234,567 */
static const char *commas(size_t n, char text[32]) {
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%zu", n), at = 0;
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0) text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = 0;
    return text;
}

static void print_parameters(const GPT2Config *c) {
    const size_t trained = trained_parameters(c), norms = adapters.form.norms ? (size_t)(2 * c->n_layer + 1) * 2 * (size_t)c->n_embd : 0;
    const size_t all = base_parameters(c) + trained - norms;
    char a[32], b[32];
    printf("%d adapters %d -> %d -> %d, %s, %s%s\n", c->n_layer * adapters.per_layer, c->n_embd, adapters.form.dim, c->n_embd, args.placement, args.activation,
           norms ? ", and the layer norms" : "");
    printf("trainable params: %s || all params: %s || trainable%%: %.4f\n", commas(trained, a), commas(all, b), 100 * (double)trained / (double)all);
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

/* AdapterHub's directory. The model's norms, where they train, stand in the same file under their own names: the adapters library puts
   them into its model, too. */
static int save_adapter(const GPT2 *model, const char *dir, const char *from, Error *e) {
    char *text = hf_bottleneck_text(&adapters.form, gpt2_config(model), from);
    int status = hf_save_added(model, dir, "adapter.safetensors", text, e);
    free(text);
    return status;
}

/* Fills the added tensors from a directory. An adapter whose up projections are all zero has learned nothing: unless a run goes on from
   its own early checkpoint, that is a file which was made or loaded wrongly. */
static void load_adapter(GPT2 *model, const char *dir, bool resumed) {
    Error e;
    if (hf_load_added(model, dir, "adapter.safetensors", &e)) die_usage("%s", e.text);
    bool zero = true;
    for (int i = gpt2_own_tensors(model) + UP_W; i < gpt2_tensors(model); i += PER_ADAPTER)
        for (int bias = 0; bias < 2; bias++) {
            const size_t n = gpt2_tensor(model, i + bias)->n;
            float *w = (float *)xmalloc(sizeof *w * n);
            gpt2_read(model, i + bias, GPT2_WEIGHT, 0, n, w);
            for (size_t j = 0; j < n; j++) zero &= w[j] == 0;
            free(w);
        }
    if (zero && !resumed) die_usage("%s: every up projection is zero: this adapter was never trained; leave out --adapter to start anew", dir);
}

/* ---- the loss -------------------------------------------------------------------------------------------------- */

/*
 * Cross-entropy of the scored tokens (target >= 0), this batch's share of the mean over all M of the step:
 *     L = -1/M sum_i log p(target_i),   dL/dlogp_i = -1/M
 * Returns the share of L and writes its gradient (N).
 */
static double cross_entropy(int N, const int *target, const float *logp, double M, float *dlogp) {
    double loss = 0;
    for (int i = 0; i < N; i++) {
        loss -= target[i] >= 0 ? (double)logp[i] / M : 0;
        dlogp[i] = target[i] >= 0 ? (float)(-1 / M) : 0.0f;
    }
    return loss;
}

/* ---- the loop -------------------------------------------------------------------------------------------------- */

#ifndef TESTING
int main(int argc, char **argv) {
    // Flags. Neither a model nor data means the built-in example; flags that are given count either way.
    Error e;
    Run run = defaults(false);
    args.adapter_dim = 0, args.placement = args.activation = NULL;   // which of them are given shows, until the defaults come back
    bool example = run_parse(&run, "adapter", flags, argc, argv, &e) == 0 && !run.model && !run.data;
    const Args asked = args;
    run_free(&run);
    run = defaults(example);
    run_start(&run, "adapter", about, flags, argc, argv);
    if (!run.model || !run.data) die_usage("--model DIR and --data FILE are both needed (or neither, for the built-in example)");

    // The model's shape, the adapters', the records as tokens, and what it all takes
    GPT2Config config;
    GPT2Noise noise = {.seed = (uint64_t)run.seed};
    const char *from = run_checkpoint_dir(&run) ? run_checkpoint_dir(&run) : args.adapter;
    if (hf_config(run.model, &config, &e)) die_usage("%s", e.text);
    choose_form(from, &config, asked);
    if (run_dropout(&noise, &config, args.dropout, &e)) die_usage("--dropout %s: it %s", args.dropout, e.text);
    run_echo(&run);
    print_parameters(&config);
    task_load(&task, &run, &config);
    GPT2Limits limits = task_limits(&task, &run);
    limits.gradient_checkpointing = args.gradient_checkpointing;
    limits.trains = adapters.form.norms ? TRAIN_NORMS : TRAIN_NONE;
    limits.more = add_tensors(&config, &limits.more_n);
    const Tap tap = {.at = {[TAP_ATTN] = adapters.form.mh_adapter, [TAP_MLP] = true}, .forward = tap_forward, .backward = tap_backward};
    limits.tap = &tap;
    GPT2Memory memory = gpt2_memory(&config, &limits);
    memory.activations += adapter_memory(&config, &limits), memory.total += adapter_memory(&config, &limits);
    run_print_memory(&memory);
    task_show(&task, run.dry_run ? 3 : 1);
    if (run.dry_run) {
        free((void *)limits.more);
        task_free(&task);
        run_free(&run);
        return 0;
    }

    GPT2 *model = hf_load(run.model, !adapters.form.norms, &e);
    if (!model) die_usage("%s", e.text);
    gpt2_reserve(model, &limits);
    adapter_reserve(&config, &limits);
    if (from) load_adapter(model, from, run_checkpoint_dir(&run));
    else init_tensors(model, (uint64_t)run.seed);
    run_saver(&run, save_adapter, "the adapter is in %1$s: give it to --adapter, or in Python to load_adapter(\"%1$s\", use_safetensors=True) after adapters.init(model)");
    task_reserve(&task, &limits);
    Totals interval = {0};       // since the last line of the log
    double num_tokens = 0;       // trained on
    run_keep(&run, "loss", &interval.loss);
    run_keep(&run, "entropy", &interval.entropy);
    run_keep(&run, "correct", &interval.correct);
    run_keep(&run, "tokens", &interval.tokens);
    run_keep(&run, "num_tokens", &num_tokens);
    double best = INFINITY;      // held-out loss of the model in OUTPUT/best
    run_keep(&run, "best", &best);
    run_resume(&run, model);

    const int batch_size = run.per_device_train_batch_size;
    const RaggedBatch *batch = &task.batch;
    int *which = (int *)xmalloc(sizeof(int) * (size_t)(batch_size * run.gradient_accumulation_steps));
    Totals before = task_evaluate(&task, model, batch_size), after = before;
    task_print_totals("before", before);
    Generation was = task_answer(&task, model);

    while (run.step < run.total_steps && !run_interrupted()) {
        // 1. the examples of this step, and M, the number of tokens it scores
        int n = run_examples(&run, run.step, which);
        double M = 0, loss = 0;
        for (int i = 0; i < n; i++) M += dataset_targets(task.train.data, which[i] = task.train.which[which[i]]);
        // 2. per micro-batch: log p of every scored token, the loss, its gradient; the gradients add up
        noise.step = (uint32_t)run.step;
        long tokens = 0;
        for (int i = 0; i < n; i += batch_size) {
            ragged_fill(&task.batch, task.train.data, which + i, n - i < batch_size ? n - i : batch_size);
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
            die("step %d: the loss is %g and the gradient's norm %g; lower --learning_rate, or look at the records of this step, the first on line %d of %s",
                run.step + 1, loss, norm, task.train.data->line[which[0]], run.data);
        run.step++;
        num_tokens += (double)tokens;
        // 4. log, evaluate, save
        run_progress(&run, loss, tokens);
        if (run_should_log(&run)) {
            run_log(&run, {"loss", interval.loss / interval.tokens}, {"entropy", interval.entropy / interval.tokens},
                    {"mean_token_accuracy", interval.correct / interval.tokens}, {"grad_norm", norm},
                    {"learning_rate", (double)adamw.learning_rate}, {"num_tokens", num_tokens}, {"epoch", run_epoch(&run)});
            interval = (Totals){0};
        }
        if (run_should_evaluate(&run) && task.held_out.n) {
            after = task_evaluate(&task, model, batch_size);
            run_log(&run, {"eval_loss", after.loss / after.tokens}, {"eval_perplexity", exp(after.loss / after.tokens)},
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
    printf("peak memory %.0f MB, planned %.0f MB\n", (double)run_peak_memory() / 1e6, (double)memory.total / 1e6);
    int status = run_finish(&run, model);
    generation_free(&was);
    gpt2_free(model);
    device_free(adapters.memory, adapters.bytes);
    free((void *)limits.more);
    task_free(&task);
    free(which);
    return status;
}
#endif
