/*
 * adapter.c - bottleneck adapters: fine-tune a frozen GPT-2 through small layers that are put
 * between its own.
 *
 * An adapter squeezes what the network has computed into a few channels, and adds what comes out
 * again to it:
 *
 *     A(x) = up(dropout(act(down(x))))          down (D,C), up (C,D), with biases: all that trains;
 * D of 8 to 256, C of hundreds
 *
 * With r the residual stream before a sublayer, and f what the sublayer (attention or MLP) would
 * add to it:
 *
 *     houlsby     r' = r + f + A(f)             after attention and MLP: Houlsby et al. 2019,
 * section 2; the adapters library's double_seq_bn pfeiffer    r' = r + f + A(r + f)         after
 * the MLP alone: Pfeiffer et al. 2021, section 3.2; its seq_bn
 *
 * down starts random and up zero, so that the first step starts from the model itself. Other than
 * LoRA's, the update is not linear in x: it cannot be added to a weight, and using it costs its two
 * products for ever.
 *
 * Read it next to lora.c with diff: the loop is the same. What is saved is honest. The frozen model
 * has no gradient and no moments, the products for its gradients are not computed, and its weights
 * stay in the file they are mapped from, which is never written. The result is a directory of a few
 * megabytes, as the adapters library (Poth et al. 2023) reads and writes it.
 *
 * Left out: adapters beside a sublayer instead of after it, adapters on top of each other, gates,
 * and scales other than 1; files that have them are refused.
 */
#include "common/model/gpt2.h"  // the model: gpt2_forward, gpt2_logprob, gpt2_backward, gpt2_step
#include "common/model/loss.h"  // cross_entropy
#include "common/files/hf.h"    // hf_config, hf_load, AdapterHub's directories
#include "common/run/run.h"     // flags, schedule, log, checkpoints
#include "common/model/tap.h"   // the way into the network, and kernels.h
#include "common/run/chat.h"    // --prompt and --chat
#include "common/run/task.h"    // records as examples, held-out figures
#include "common/util.h"        // die, xmalloc

/* ---- flags ----------------------------------------------------------------------------------- */

static const char about[] =
    "fine-tuning of a frozen GPT-2 through bottleneck adapters, on a task or on plain text.\n"
    "With --adapter and --prompt or --chat it uses what it has trained. Without arguments: a small "
    "built-in example.";

static Task task;

typedef struct {
    const char *dropout, *placement, *activation, *init, *adapter;
    int adapter_dim;
    float reduction_factor, adapter_dropout;
    bool train_layernorm, allow_untrained;
    bool gradient_checkpointing;
} Args;

static Args args;

static const Flag flags[] = {
    {"", FLAG_TITLE, NULL, .help = "Bottleneck adapters"},
    TASK_FLAGS(task),
    {"adapter_dim", FLAG_INT, &args.adapter_dim, .low = 1, .high = 65536,
     .help = "channels of the bottleneck"},
    {"reduction_factor", FLAG_FLOAT, &args.reduction_factor, .high = 65536,
     .help =
         "the model's channels by those of the bottleneck, rounded down; 0: --adapter_dim counts"},
    {"placement", FLAG_CHOICE, &args.placement,
     .help = "houlsby|pfeiffer: after attention and MLP, or after the MLP alone"},
    {"activation", FLAG_CHOICE, &args.activation,
     .help = "relu|gelu|silu: in the bottleneck; gelu is the tanh form, silu is also called swish"},
    {"adapter_dropout", FLAG_FLOAT, &args.adapter_dropout, .high = 0.99,
     .help = "probability in the bottleneck, after the activation"},
    {"init", FLAG_CHOICE, &args.init,
     .help =
         "xavier|bert: down uniform by its shape and up zero, or both normal with deviation 0.02"},
    {"train_layernorm", FLAG_BOOL, &args.train_layernorm,
     .help = "train the model's layer norms too, as Houlsby et al. did"},
    {"adapter", FLAG_STRING, &args.adapter, .free_on_resume = true,
     .help = "a directory of AdapterHub's to go on from; flags that describe an adapter are then "
             "not needed, and must not contradict it"},
    {"allow_untrained", FLAG_BOOL, &args.allow_untrained, .free_on_resume = true,
     .help = "use an adapter that changes nothing: every up is zero"},
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
   would cost a third of the time that adapters save. */
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
    args.adapter_dim = 64;
    args.reduction_factor = 0;
    args.placement = "houlsby";
    args.activation = "relu";
    args.adapter_dropout = 0.1f;
    args.init = "xavier";
    args.train_layernorm = args.allow_untrained = false;
    args.adapter = NULL;
    args.dropout = "0";
    args.gradient_checkpointing = false;
    if (example) {
        run.model = run_example_file("tiny");
        run.data = run_example_file("tiny/domain.jsonl");
        run.eval = run_example_file("tiny/domain-eval.jsonl");
        run.per_device_train_batch_size = 16;
        run.gradient_accumulation_steps = 1;
        run.max_steps = 300;
        run.learning_rate = 1.5e-3f;
        run.adam_beta2 = 0.99f;
        run.lr_scheduler_type = "cosine";
        run.warmup_steps = 20;
        run.eval_steps = 150;
        run.logging_steps = 50;
        task.eval_samples = 128;
        args.adapter_dropout = 0;  // fifteen epochs of a few hundred short records: what a
                                   // bottleneck of 64 can hold it may use
    }
    return run;
}

/* ---- the adapters ---------------------------------------------------------------------------- */

/* The tensors of one of them, as nn.Linear has them: down (D,C) and its bias (D), up (C,D) and its
 * bias (C). */
enum { DOWN_W, DOWN_B, UP_W, UP_B, PER_ADAPTER };

static const char *const tensor_names[PER_ADAPTER] = {
    "adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias"};

static const struct {
    const char *flag, *name;  // of --activation; of the library
    void (*forward)(real *out, const real *inp, size_t n);
    void (*backward)(real *dout, real *inp, size_t n);
} activations[] = {{"relu", "relu", relu_forward, relu_backward},
                   {"gelu", "gelu_new", gelu_forward, gelu_backward},
                   {"silu", "swish", silu_forward, silu_backward}};

/* What this program adds to the model. */
static struct {
    Bottleneck form;               // its dim is D
    int activation;                // of activations[]
    int layers, sites, tensors;    // adapters of a layer: attention's and MLP's, or MLP's; tensors
                                   // added, layer after layer
    GPT2Tensor *tensor;            // (tensors)
    void *memory;                  // (device) one block for what follows
    size_t bytes, x_size, z_size;  // numbers of one x and one z
    real *x, *z;  // (places,sites) of (N,C), the adapter's input, and of (N,D), what down made of
                  // it: backward needs them
    real *a;      // (N,D) scratch
} adapter;

/* The form that the flags describe. asked: the flags as given, empty where they are not. */
static Bottleneck form_of_flags(const GPT2Config *c) {
    Bottleneck b = {.name = "adapter",
                    .dim = args.adapter_dim,
                    .mh_adapter = !strcmp(args.placement, "houlsby"),
                    .norms = args.train_layernorm};
    if (args.reduction_factor > 0) b.dim = (int)((float)c->n_embd / args.reduction_factor);
    if (b.dim < 1) b.dim = 1;
    b.original_ln_before = !b.mh_adapter;
    for (size_t i = 0; i < sizeof activations / sizeof *activations; i++)
        if (!strcmp(args.activation, activations[i].flag)) b.non_linearity = activations[i].name;
    return b;
}

/* The form of the adapter in dir, which flags that were given (asked; 0 or NULL where not) must not
 * contradict. -1 with e filled. */
static int form_of_directory(const char *dir, const GPT2Config *c, const Args *asked, Bottleneck *b,
                             Error *e) {
    const Bottleneck flag = form_of_flags(c);
    if (hf_bottleneck(dir, c, b, e)) return -1;
    if ((asked->adapter_dim || asked->reduction_factor > 0) && flag.dim != b->dim)
        return fail(e,
                    "%s: the adapter there has a bottleneck of %d, and the flags say %d; leave out "
                    "--adapter_dim and --reduction_factor",
                    dir, b->dim, flag.dim);
    if (asked->placement && flag.mh_adapter != b->mh_adapter)
        return fail(e, "%s: the adapter there is placed as %s has it; leave out --placement", dir,
                    b->mh_adapter ? "houlsby" : "pfeiffer");
    if (asked->activation && strcmp(flag.non_linearity, b->non_linearity))
        return fail(e, "%s: the adapter there has the activation %s; leave out --activation", dir,
                    b->non_linearity);
    if (asked->train_layernorm && !b->norms)
        return fail(e,
                    "%s: the adapter there was trained without the layer norms; leave out "
                    "--train_layernorm",
                    dir);
    return 0;
}

/* Lists the tensors of adapters of form b in a model of shape c, and fills in adapter and the flags
 * that describe it. */
static void adapter_plan(const Bottleneck *b, const GPT2Config *c) {
    const int C = c->n_embd, D = b->dim,
              shapes[PER_ADAPTER][3] = {{2, D, C}, {1, D, 1}, {2, C, D}, {1, C, 1}};
    adapter.form = *b;
    adapter.layers = c->n_layer;
    adapter.sites = b->mh_adapter ? 2 : 1;
    adapter.tensors = adapter.layers * adapter.sites * PER_ADAPTER;
    GPT2Tensor *t = adapter.tensor = (GPT2Tensor *)xcalloc((size_t)adapter.tensors, sizeof *t);
    for (int layer = 0; layer < adapter.layers; layer++)
        for (int site = 0; site < adapter.sites; site++)
            for (int k = 0; k < PER_ADAPTER; k++, t++) {
                snprintf(t->name, sizeof t->name, "transformer.h.%d.%s_adapters.adapters.%s.%s",
                         layer, site < adapter.sites - 1 ? "attention" : "output", b->name,
                         tensor_names[k]);
                t->ndim = shapes[k][0];
                t->shape[0] = shapes[k][1];
                t->shape[1] = shapes[k][2];
                t->n = (size_t)shapes[k][1] * (size_t)shapes[k][2];
            }
    for (adapter.activation = 0; strcmp(activations[adapter.activation].name, b->non_linearity);
         adapter.activation++) {
    }
    args.adapter_dim = D;
    args.reduction_factor = 0;
    args.placement = b->mh_adapter ? "houlsby" : "pfeiffer";
    args.activation = activations[adapter.activation].flag;
    args.train_layernorm = b->norms;
    adapter.form.dropout = args.adapter_dropout;
    adapter.form.bert = !strcmp(args.init, "bert");
}

static void adapter_free(void) {
    device_free(adapter.memory, adapter.bytes);
    free(adapter.tensor);
    memset(&adapter, 0, sizeof adapter);
}

static size_t adapter_parameters(void) {
    size_t n = 0;
    for (int i = 0; i < adapter.tensors; i++) n += adapter.tensor[i].n;
    return n;
}

/* Where the adapters are, and PEFT's line of counts. */
static void adapter_print(const GPT2Config *c) {
    const size_t base = gpt2_parameters(c, TRAIN_ALL), added = adapter_parameters(),
                 own = added + (adapter.form.norms ? gpt2_parameters(c, TRAIN_NORMS) : 0);
    printf("adapters: %s, %d -> %d -> %d, %s, dropout %g, after %s of all %d layers%s\n",
           args.placement, c->n_embd, adapter.form.dim, c->n_embd, args.activation,
           (double)adapter.form.dropout, adapter.form.mh_adapter ? "attention and MLP" : "the MLP",
           c->n_layer, adapter.form.norms ? "; and the layer norms" : "");
    run_print_parameters(own, base + added);
}

/* ---- forward and backward -------------------------------------------------------------------- */

/* What a call is about: the first of its adapter's tensors, and where its x and z are kept. */
static int place(const TapCall *c, real **x, real **z) {
    const int site = c->site == TAP_MLP ? adapter.sites - 1 : 0,
              at = (c->save_at < 0 ? 0 : c->save_at) * adapter.sites + site;
    *x = adapter.x + (size_t)at * adapter.x_size;
    *z = adapter.z + (size_t)at * adapter.z_size;
    return gpt2_own_tensors(c->m) + (c->layer * adapter.sites + site) * PER_ADAPTER;
}

/* out (N,C), which is f, += up(a),  a (N,D) = dropout(act(z)),  z (N,D) = down(x),  x (N,C) = f
 * (houlsby) or r + f (pfeiffer) */
static void adapter_forward(void *context, const TapCall *c) {
    real *x, *z, *a = adapter.a;
    const int i = place(c, &x, &z), N = c->N, C = c->OC, D = adapter.form.dim;
    (void)context;
    if (adapter.form.original_ln_before)
        add_activations(x, c->residual, c->out, (size_t)N * (size_t)C);
    else
        device_copy(x, c->out, sizeof(real) * (size_t)N * (size_t)C);
    projection_forward(z, x, gpt2_weight(c->m, i + DOWN_W), gpt2_weight(c->m, i + DOWN_B), false, N,
                       C, D);
    activations[adapter.activation].forward(a, z, (size_t)N * (size_t)D);
    dropout(a, N, D, tap_noise(c, adapter.form.dropout, RANDOM_DROPOUT_ADAPTER));
    projection_forward(c->out, a, gpt2_weight(c->m, i + UP_W), gpt2_weight(c->m, i + UP_B), true, N,
                       D, C);
}

/* dout becomes the gradient by f: its own, which passes the sum untouched, and what comes through
 * the adapter. */
static void adapter_backward(void *context, const TapCall *c) {
    real *x, *z, *d = adapter.a;  // d (N,D): the gradient by a, then by z
    const int i = place(c, &x, &z), N = c->N, C = c->OC, D = adapter.form.dim;
    const Noise noise = tap_noise(c, adapter.form.dropout, RANDOM_DROPOUT_ADAPTER);
    const real *down = gpt2_weight(c->m, i + DOWN_W);
    (void)context;
    // out = f + up(a):  da = dout up
    projection_backward_input(d, c->dout, gpt2_weight(c->m, i + UP_W), false, N, D, C);
    // a = dropout(act(z)):  dz = act'(z) dropout(da); and z becomes act(z), then a
    dropout(d, N, D, noise);
    activations[adapter.activation].backward(d, z, (size_t)N * (size_t)D);
    dropout(z, N, D, noise);
    // dup (C,D) += dout^T a;  z = down(x):  ddown (D,C) += dz^T x
    projection_backward_weight(gpt2_gradient(c->m, i + UP_W), gpt2_gradient(c->m, i + UP_B), z,
                               c->dout, N, D, C);
    projection_backward_weight(gpt2_gradient(c->m, i + DOWN_W), gpt2_gradient(c->m, i + DOWN_B), x,
                               d, N, C, D);
    if (adapter.form.original_ln_before) {  // x = r + f:  dr += dz down,  df += dz down, which
                                            // takes the place of x
        projection_backward_input(x, d, down, false, N, C, D);
        add_activations(c->dresidual, c->dresidual, x, (size_t)N * (size_t)C);
        add_activations(c->dout, c->dout, x, (size_t)N * (size_t)C);
    } else {  // x = f:  df += dz down
        projection_backward_input(c->dout, d, down, true, N, C, D);
    }
}

static Tap tap = {.forward = adapter_forward, .backward = adapter_backward};

/* What the model must make room for, and where it calls. */
static void adapter_limits(GPT2Limits *limits) {
    tap.at[TAP_ATTN] = adapter.form.mh_adapter;
    tap.at[TAP_MLP] = true;
    limits->trains = adapter.form.norms ? TRAIN_NORMS : TRAIN_NONE;
    limits->more = adapter.tensor;
    limits->more_n = adapter.tensors;
    limits->tap = &tap;
}

/* Bytes of what is kept for backward and of scratch; taken unless only counted. Without training,
   and with gradient checkpointing, all layers share one place. */
static size_t adapter_reserve(const GPT2Limits *limits, const GPT2Config *c, bool count) {
    const size_t N = (size_t)limits->tokens,
                 places =
                     (size_t)adapter.sites *
                     (limits->train && !limits->gradient_checkpointing ? (size_t)c->n_layer : 1);
    adapter.x_size = N * (size_t)c->n_embd;
    adapter.z_size = N * (size_t)adapter.form.dim;
    adapter.bytes = sizeof(real) * (places * (adapter.x_size + adapter.z_size) + adapter.z_size);
    if (count) return adapter.bytes;
    if (!(adapter.memory = device_alloc(adapter.bytes)))
        die("out of memory for %zu bytes of activations; use a smaller "
            "--per_device_train_batch_size",
            adapter.bytes);
    adapter.x = adapter.memory;
    adapter.z = adapter.x + places * adapter.x_size;
    adapter.a = adapter.z + places * adapter.z_size;
    return adapter.bytes;
}

/* ---- start, save, load ----------------------------------------------------------------------- */

/* xavier: down uniform in +-sqrt(6 / (C + D)) (Glorot and Bengio 2010), and up stays zero. bert:
 * both N(0, 0.02). Biases are zero already. */
static void adapter_init(GPT2 *m, uint64_t seed) {
    const float bound = sqrtf(6.0f / (float)(gpt2_config(m)->n_embd + adapter.form.dim));
    for (int i = gpt2_own_tensors(m); i < gpt2_tensors(m); i++) {
        const GPT2Tensor *t = gpt2_tensor(m, i);
        const bool down = (i - gpt2_own_tensors(m)) % PER_ADAPTER == DOWN_W;
        if (t->ndim == 1 || (!down && !adapter.form.bert)) continue;
        float *w = (float *)xmalloc(sizeof *w * t->n);
        for (size_t j = 0; j < t->n; j++) {
            Random4 r = random4(seed, RANDOM_INIT, (uint32_t)i, 0, 0, (uint32_t)j);
            w[j] = adapter.form.bert ? 0.02f * random_normal(r.v[0], r.v[1])
                                     : bound * (2 * random_uniform(r.v[0]) - 1);
        }
        gpt2_write(m, i, GPT2_WEIGHT, 0, t->n, w);
        free(w);
    }
}

static const char weights_name[] = "adapter.safetensors";

/* Layer norms that train go into the same file under their names in the model, where the library's
 * load_adapter finds them, too. */
static int adapter_save(const GPT2 *m, const char *dir, const char *from, Error *e) {
    char *config = hf_bottleneck_text(&adapter.form, gpt2_config(m), from);
    int status = hf_save_added(m, dir, weights_name, config, e);
    free(config);
    return status;
}

/* Is every up zero, with its bias, as nobody ever trained it? */
static bool is_untrained(const GPT2 *m) {
    bool zero = true;
    for (int i = gpt2_own_tensors(m); i < gpt2_tensors(m) && zero; i++) {
        const size_t n = gpt2_tensor(m, i)->n;
        if ((i - gpt2_own_tensors(m)) % PER_ADAPTER < UP_W) continue;
        float *w = (float *)xmalloc(sizeof *w * n);
        gpt2_read(m, i, GPT2_WEIGHT, 0, n, w);
        for (size_t j = 0; j < n && zero; j++) zero = w[j] == 0;
        free(w);
    }
    return zero;
}

/* The adapters of a directory; one that --adapter names must have been trained. */
static void adapter_load(GPT2 *m, const char *dir) {
    Error e;
    if (hf_load_added(m, dir, weights_name, &e)) die_usage("%s", e.text);
    if (dir == args.adapter && !args.allow_untrained && is_untrained(m))
        die_usage(
            "%s/%s: every up projection is zero, so that it changes nothing: was it saved before "
            "it was trained? --allow_untrained uses it all the same",
            dir, weights_name);
    fprintf(talk_asked(&task.talk) ? stderr : stdout, "%s: an adapter of AdapterHub's, \"%s\"\n",
            dir, adapter.form.name);
}

/* --adapter without data: answers. */
static int use(Run *run, const GPT2Config *config) {
    Error e;
    GPT2Limits limits = talk_prepare(&task.talk, args.adapter, run->model, task.template, config);
    adapter_limits(&limits);
    GPT2 *model = hf_load(run->model, !adapter.form.norms, &e);
    if (!model) die_usage("%s", e.text);
    gpt2_reserve(model, &limits);
    adapter_reserve(&limits, config, false);
    adapter_load(model, args.adapter);
    talk_hold(&task.talk, model, (uint64_t)run->seed);
    gpt2_free(model);
    adapter_free();
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
    args.adapter_dim = 0;
    args.placement = args.activation = NULL;  // unless they are given
    bool example = run_parse(&run, "adapter", flags, argc, argv, &e) == 0 && !run.model &&
                   !run.data && !args.adapter && !talk_asked(&task.talk);
    const Args asked = args;
    run_free(&run);
    run = defaults(example);
    run_start(&run, "adapter", about, flags, argc, argv);
    const bool using = run.model && args.adapter && !run.data && talk_asked(&task.talk);
    if (!using && talk_asked(&task.talk))
        die_usage(
            "--prompt and --chat are answered by --model DIR with --adapter DIR; ./sft answers "
            "from a model alone");
    if (!using && (!run.model || !run.data))
        die_usage(
            "--model DIR and --data FILE are both needed (or neither, for the built-in example); "
            "or --model, --adapter, and --prompt or --chat");

    // The model's shape, the records as tokens, and what it all takes
    GPT2Config config;
    GPT2Noise noise = {.seed = (uint64_t)run.seed};
    const char *from = run_checkpoint_dir(&run) ? run_checkpoint_dir(&run) : args.adapter;
    if (hf_config(run.model, &config, &e)) die_usage("%s", e.text);
    Bottleneck form = form_of_flags(&config);
    if (from && form_of_directory(from, &config, &asked, &form, &e)) die_usage("%s", e.text);
    adapter_plan(&form, &config);
    if (run_dropout(&noise, &config, args.dropout, &e))
        die_usage("--dropout %s: it %s", args.dropout, e.text);
    if (using) return use(&run, &config);
    run_echo(&run);
    adapter_print(&config);
    task_load(&task, &run, &config);
    GPT2Limits limits = task_limits(&task, &run);
    limits.gradient_checkpointing = args.gradient_checkpointing;
    adapter_limits(&limits);
    const size_t kept = adapter_reserve(&limits, &config, true);
    GPT2Memory memory = gpt2_memory(&config, &limits);
    memory.activations += kept;
    memory.total += kept;
    run_print_memory(&memory);
    task_show(&task, run.dry_run ? 3 : 1);
    if (run.dry_run) {
        task_free(&task);
        adapter_free();
        run_free(&run);
        return 0;
    }

    GPT2 *model = hf_load(run.model, !adapter.form.norms, &e);
    if (!model) die_usage("%s", e.text);
    gpt2_reserve(model, &limits);
    adapter_reserve(&limits, &config, false);
    adapter_init(model, (uint64_t)run.seed);
    if (from) adapter_load(model, from);
    task_reserve(&task, &limits);
    run_saver(&run, adapter_save,
              "the adapter is in %s: give it to --adapter, or in Python to load_adapter(..., "
              "use_safetensors=True) after adapters.init(model)");
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
    run_print_peak_memory(&memory);
    int status = run_finish(&run, model);
    generation_free(&was);
    gpt2_free(model);
    adapter_free();
    task_free(&task);
    free(which);
    return status;
}
#endif
