/*
 * technique.c - added tensors, adapters in files, merging. See technique.h.
 */
#include "run/technique.h"

#include <sys/stat.h>

#include "files/hf.h"
#include "files/usage.h"
#include "files/peft.h"
#include "ranks.h"
#include "run/lock.h"
#include "run/private.h"
#include "run/streams.h"
#include "text/template.h"

/* ---- added tensors --------------------------------------------------------------------------- */

void added_begin(Added *a, int layers) {
    const size_t bytes = sizeof *a->first * (size_t)layers;
    added_free(a);
    a->layers = layers;
    a->first = xmalloc(bytes);
    memset(a->first, -1, bytes);
}

void added_site(Added *a, int layer, TapSite site) {
    a->first[layer][site] = a->n;
    a->tap.at[site] = true;
}

void added_append(Added *a, int rows, int columns, const char *name, ...) {
    if (a->n == a->capacity) {
        a->capacity = a->capacity ? 2 * a->capacity : 64;
        a->tensor = (GPT2Tensor *)xrealloc(a->tensor, (size_t)a->capacity, sizeof *a->tensor);
    }
    GPT2Tensor *t = &a->tensor[a->n++];
    *t = (GPT2Tensor){.ndim = columns ? 2 : 1, .shape = {rows, columns ? columns : 1}};
    t->n = (size_t)t->shape[0] * (size_t)t->shape[1];
    va_list arguments;
    va_start(arguments, name);
    vsnprintf(t->name, sizeof t->name, name, arguments);
    va_end(arguments);
}

void added_free(Added *a) {
    device_free(a->memory, a->bytes);
    free(a->first);
    free(a->tensor);
    memset(a, 0, sizeof *a);
}

int added_at(const Added *a, const TapCall *c) {
    const int k = a->first[c->layer][c->site];
    return k < 0 ? -1 : gpt2_own_tensors(c->m) + k;
}

size_t added_parameters(const Added *a) {
    size_t n = 0;
    for (int k = 0; k < a->n; k++) n += a->tensor[k].n;
    return n;
}

void added_print(const Added *a, const GPT2Config *c) {
    const size_t added = added_parameters(a);
    run_print_parameters(gpt2_parameters(c, a->trains) + added,
                         gpt2_parameters(c, TRAIN_ALL) + added);
}

void added_print_bytes(const Added *a, const GPT2Config *c) {
    const GPT2Format format = a->format;
    const int C = c->n_embd, F = c->n_inner;
    const int shape[][2] = {{C, 3 * C}, {C, C}, {C, F}, {F, C}};  // in and out, of each block
    size_t matrices = 0, packed = 0;
    for (int i = 0; i < 4; i++) {
        const int in = shape[i][0], out = shape[i][1];
        matrices += (size_t)c->n_layer * (size_t)in * (size_t)out;
        packed += (size_t)c->n_layer * nf4_bytes(in, out, format == FORMAT_NF4_DOUBLE);
    }
    const size_t base = gpt2_parameters(c, TRAIN_ALL);
    const size_t embeddings = ((size_t)c->vocab_size + (size_t)c->n_positions) * (size_t)C;
    printf("weights: embeddings %.1f MB (float32), matrices of the blocks ",
           4e-6 * (double)embeddings);
    if (format == FORMAT_FLOAT)
        printf("%.1f MB (float32)", 4e-6 * (double)matrices);
    else
        printf("%.1f MB (NF4%s, %.3f bits each; %.1f MB in float32)", 1e-6 * (double)packed,
               format == FORMAT_NF4_DOUBLE ? ", doubly quantised" : "",
               8 * (double)packed / (double)matrices, 4e-6 * (double)matrices);
    printf(", norms and biases %.1f MB, LoRA %.1f MB\n",
           4e-6 * (double)(base - embeddings - matrices), 4e-6 * (double)added_parameters(a));
}

float *added_read(const GPT2 *m, int k) {
    const int i = gpt2_own_tensors(m) + k;
    const size_t n = gpt2_tensor(m, i)->n;
    float *values = (float *)xmalloc(sizeof *values * n);
    gpt2_read(m, i, GPT2_WEIGHT, 0, n, values);
    return values;
}

void added_write(GPT2 *m, int k, const float *values) {
    const int i = gpt2_own_tensors(m) + k;
    gpt2_write(m, i, GPT2_WEIGHT, 0, gpt2_tensor(m, i)->n, values);
}

/* ---- a technique ----------------------------------------------------------------------------- */

const char *technique_directory(const Technique *t, const Run *run) {
    const char *checkpoint = run_weights_dir(run);
    return checkpoint ? checkpoint : t->flags->adapter;
}

void technique_limits(const Technique *t, GPT2Limits *limits) {
    Added *a = t->added;
    a->tap.forward = t->forward;
    a->tap.backward = t->backward;
    limits->trains = a->trains;
    limits->format = a->format;
    limits->more = a->tensor;
    limits->more_n = a->n;
    limits->tap = &a->tap;
}

size_t technique_bytes(const Technique *t, const GPT2Limits *limits, const GPT2Config *config) {
    return sizeof(real) * t->scratch(limits, config, NULL);
}

void technique_reserve(const Technique *t, const GPT2Limits *limits, const GPT2Config *config) {
    Added *a = t->added;
    device_free(a->memory, a->bytes);
    a->bytes = technique_bytes(t, limits, config);
    a->memory = device_alloc(a->bytes);
    if (!a->memory)
        die("out of memory for %zu bytes of activations; use a smaller "
            "--per_device_train_batch_size",
            a->bytes);
    t->scratch(limits, config, a->memory);
}

bool technique_is_untrained(const Technique *t, const GPT2 *m) {
    bool zero = true;
    for (int k = 0; k < t->added->n && zero; k++) {
        if (k % t->per_site < t->zero_from) continue;
        float *values = added_read(m, k);
        for (size_t j = 0; j < t->added->tensor[k].n && zero; j++) zero = values[j] == 0;
        free(values);
    }
    return zero;
}

/* Reads the tensors from dir. Refuses an adapter that was never trained, where that matters. */
static void load(const Technique *t, const Run *run, GPT2 *m, const char *dir) {
    Error e;
    if (hf_load_added(m, dir, t->weights, &e)) die_usage("%s", e.text);
    if (t->flags->allow_untrained || run_checkpoint_dir(run)) return;
    if (t->training_starts_untrained && run->data) return;
    if (technique_is_untrained(t, m))
        die_usage(
            "%s/%s: %s is zero, so the adapter changes nothing. Was it saved before it was "
            "trained? --allow_untrained uses it anyway",
            dir, t->weights, t->untrained);
}

void technique_start(const Technique *t, const Run *run, GPT2 *m, const GPT2Limits *limits) {
    const char *dir = technique_directory(t, run);
    technique_reserve(t, limits, gpt2_config(m));
    t->init(m, (uint64_t)run->seed);
    if (dir) load(t, run, m, dir);
}

GPT2 *technique_open(const Technique *t, const Run *run, const char *dir, GPT2Limits limits) {
    Error e;
    t->plan(run, dir);
    technique_limits(t, &limits);
    gpt2_use_bf16(&limits, run->bf16, limits.trains == TRAIN_NONE);
    GPT2 *m = hf_load(run->model, limits.trains == TRAIN_NONE, &e);
    if (!m) die_usage("%s", e.text);
    gpt2_reserve(m, &limits);
    technique_reserve(t, &limits, &run->config);
    load(t, run, m, dir);
    return m;
}

int technique_save(const Technique *t, const GPT2 *m, const char *dir, const char *from,
                   const char *template, Error *e) {
    char *config = t->config_text(gpt2_config(m), from);
    const int status = hf_save_added(m, dir, t->weights, config, template, e);
    free(config);
    return status;
}

/* ---- flags and the adapter in a directory ---------------------------------------------------- */

/* Does the name of n characters mean the module? */
static bool means(const char *name, size_t n, const char *module) {
    const size_t length = strlen(module);
    if (n == strlen("all-linear") && !strncmp(name, "all-linear", n)) return true;
    return length >= n && !strncmp(module + length - n, name, n) &&
           (length == n || module[length - n - 1] == '.');
}

/* The name after this one. */
static const char *next_name(const char *name) {
    name += strcspn(name, ",");
    return *name ? name + 1 : name;
}

bool is_target(const char *module, const char *targets, bool *used) {
    bool is = false;
    for (const char *name = targets; *name; name = next_name(name))
        if (means(name, strcspn(name, ","), module)) is = used[name - targets] = true;
    return is;
}

int check_targets(const char *targets, const bool *used, int layers, Error *e) {
    if (!*targets) return fail(e, "names no module; they are c_attn, c_proj and c_fc");
    for (const char *name = targets; *name; name = next_name(name))
        if (!used[name - targets])
            return fail(
                e,
                "\"%.*s\" is the end of no linear layer's name; they are transformer.h.0 to "
                "%d.attn.c_attn, .attn.c_proj, .mlp.c_fc, .mlp.c_proj",
                (int)strcspn(name, ","), name, layers - 1);
    return 0;
}

void check_agrees(const Run *run, const char *flag, const char *value, const char *dir) {
    char text[64];
    const char *given = flag_text(flags_find(run->state->flags, flag), text);
    if (run_given(run, flag) && strcmp(given, value))
        die_usage("%s: this adapter has the %s %s; leave out --%s", dir, flag, value, flag);
}

/* ---- merging --------------------------------------------------------------------------------- */

/* Ends the program with 2 if dir is the directory that another flag names. */
static void refuse_directory(const char *dir, const char *flag, const char *other) {
    if (!other || !*other) return;
    char *a = resolve_path(dir), *b = resolve_path(other);
    const bool same = !strcmp(a, b);
    free(a);
    free(b);
    if (same)
        die_usage(
            "--merge %s is the directory of --%s, which is never written by --merge; choose "
            "another directory",
            dir, flag);
}

/* Ends the program with 2 if dir must not receive a merged model. */
static void check_directory(const Technique *t, const Run *run, const char *dir) {
    struct stat s;
    Error e;
    refuse_directory(dir, "model", run->model);
    refuse_directory(dir, "adapter", t->flags->adapter);
    refuse_directory(dir, "output", run->output);
    if (!stat(dir, &s) && !S_ISDIR(s.st_mode))
        die_usage("--merge %s is no directory; choose another name", dir);
    if (outputs_check_place(run, "merge", dir, &e)) die_usage("%s", e.text);
    const bool holds = bundle_found(dir) || exists_in(dir, "model.safetensors.index.json") ||
                       exists_in(dir, "pytorch_model.bin");
    // A resumed run checked the directory when it began
    if (holds && !run->overwrite_output_dir && !run_checkpoint_dir(run))
        die_usage(
            "--merge %s already holds a model; choose another directory, or allow it with "
            "--overwrite_output_dir",
            dir);
}

/* Keeps the directory for this process, and looks at it again: another run may have written there
   before it was kept. */
static void keep_directory(const Technique *t, const Run *run, const char *dir) {
    Error e;
    if (lock_directory("merge", dir, &e)) die_usage("%s", e.text);
    check_directory(t, run, dir);
}

/* The model of --model with the adapter of m, its frozen weights in the given format. */
static GPT2 *copy_unmerged(const Technique *t, const Run *run, const GPT2 *m, GPT2Limits limits,
                           GPT2Format format) {
    Error e;
    GPT2 *copy = hf_load(run->model, true, &e);
    if (!copy) die_usage("%s", e.text);
    technique_limits(t, &limits);
    limits.format = format;
    gpt2_reserve(copy, &limits);
    technique_reserve(t, &limits, &run->config);
    for (int k = 0; gpt2_own_tensors(m) + k < gpt2_tensors(m); k++) {
        float *values = added_read(m, k);
        added_write(copy, k, values);
        free(values);
    }
    return copy;
}

enum { VERIFIED = 128 };  // tokens whose logits --verify compares

/* Of the largest logit. Sums in another order differ by 1e-6 to 1e-5 of it. */
static const double MOST_DIFFERENCE = 1e-3;

/* The largest difference between the logits of merged and of the model with the adapter of m, over
   N random tokens; and in *largest the largest logit of the merged model. */
static double logit_difference(const Technique *t, const Run *run, GPT2 *merged, const GPT2 *m,
                               GPT2Limits limits, GPT2Format format, double *largest) {
    const int N = limits.tokens, start[2] = {0, N};
    int *token = (int *)xmalloc(sizeof(int) * (size_t)N);
    int *target = (int *)xcalloc((size_t)N, sizeof(int));
    float *logp = (float *)xmalloc(sizeof(float) * (size_t)N), size;
    for (int i = 0; i < N; i++) {
        const uint32_t draw = random4(1, RANDOM_DATA, 0, 0, (uint32_t)i, 0).v[0];
        token[i] = (int)(draw % (uint32_t)run->config.vocab_size);
    }
    const Batch batch = {.S = 1, .N = N, .start = start, .tokens = token};
    GPT2 *models[2] = {merged, copy_unmerged(t, run, m, limits, format)};
    for (int i = 0; i < 2; i++) {
        gpt2_forward(models[i], &batch, NULL);
        gpt2_logprob(models[i], target, 1, logp, NULL, NULL);
    }
    const double difference = (double)gpt2_logit_difference(models[1], models[0], &size);
    *largest = (double)size;
    gpt2_free(models[1]);
    free(token);
    free(target);
    free(logp);
    return difference;
}

/* Prints how much the logits of merged differ from those of the model with the adapter of m. */
static void verify(const Technique *t, const Run *run, GPT2 *merged, const GPT2 *m,
                   GPT2Format format) {
    const int N = min_int(run->config.n_positions, VERIFIED);
    const GPT2Limits limits = {.tokens = N, .sequences = 1, .scored = N};
    double largest;
    gpt2_reserve(merged, &limits);
    double difference = logit_difference(t, run, merged, m, limits, FORMAT_FLOAT, &largest);
    if (!isfinite(largest) || !(difference <= MOST_DIFFERENCE * (1 + largest)))
        die("--verify: on %d tokens the logits of the merged and the unmerged model differ by %.3g "
            "where the largest is %.3g; no more than %g of it can be rounding, so the merged model "
            "is not written",
            N, difference, largest, MOST_DIFFERENCE);
    if (!run->quiet)
        printf(
            "verified on %d tokens: the logits of the merged and the unmerged model differ by at "
            "most %.3g; the largest logit is %.3g\n",
            N, difference, largest);
    if (format == FORMAT_FLOAT) return;
    difference = logit_difference(t, run, merged, m, limits, format, &largest);
    run_check_finite(run, "the difference of the logits", difference);
    if (!run->quiet)
        printf(
            "the logits of the merged model and of the four-bit model with the adapter differ by "
            "at "
            "most %.3g: this is the error of four bits\n",
            difference);
}

/* model: of the four-bit weights that were trained on; NULL: they were whole. */
static void print_merged(const char *dir, const char *model) {
    printf(
        "the merged model is in %s: give it to --model, or in Python to "
        "AutoModelForCausalLM.from_pretrained(\"%s\")\n",
        dir, dir);
    if (model)
        printf(
            "the update was added to the float32 weights of %s, not to the four-bit weights that "
            "it was trained on\n",
            model);
}

void technique_merge(const Technique *t, const Run *run, const GPT2 *m, const char *form) {
    Error e;
    char *now;
    const char *dir = t->flags->merge;
    const GPT2Format format = t->added->format;
    GPT2 *merged = hf_load(run->model, false, &e);
    if (!merged) die_usage("%s", e.text);
    if (t->merge(merged, m, &e)) die("%s", e.text);
    if (t->flags->verify) verify(t, run, merged, m, format);
    Tokenizer *own = run->tokenizer ? NULL : run_load_tokenizer(run->model, &run->config);
    if (own && form) run_end_by_template(own, form);
    const int end = tokenizer_eos(own ? own : run->tokenizer);
    const Usage usage = {.template = form, .end = end, .end_text = template_end()};
    Bundle files = {0};
    if (bundle_read(run->model, &files, &e)) die_usage("%s", e.text);
    keep_directory(t, run, dir);
    if (lock_check("merge", &now, &e)) die("%s; the merged model is not written", e.text);
    if (hf_save_bundle(merged, dir, &files, &usage, &e)) die("%s", e.text);
    bundle_free(&files);
    tokenizer_free(own);
    if (!run->quiet) print_merged(dir, format != FORMAT_FLOAT ? run->model : NULL);
    gpt2_free(merged);
}

void technique_check_merge(const Technique *t, const Run *run) {
    if (!t->flags->merge) return;
    check_directory(t, run, t->flags->merge);
    if (!run->dry_run && !rank()) keep_directory(t, run, t->flags->merge);
}

bool technique_merges_alone(const Technique *t, const Run *run, bool chats) {
    Error e;
    char *form;
    const char *from, *adapter = t->flags->adapter;
    if (!t->flags->merge || !run->model) return false;
    check_directory(t, run, t->flags->merge);
    Bundle files = {0};  // what the merged directory will need is looked at before training
    if (bundle_read(run->model, &files, &e)) die_usage("%s", e.text);
    bundle_free(&files);
    if (!adapter || run->data) return false;
    if (!chats) streams_outlive();
    if (file_exists(t->flags->merge)) keep_directory(t, run, t->flags->merge);
    if (!chats)
        run_only(run, "merge",
                 "model adapter verify allow_untrained load_in_4bit bnb_4bit_use_double_quant "
                 "overwrite_output_dir bf16 fp16 cpu quiet");
    if (usage_template(adapter, template_end(), &form, &from, NULL, &e)) die_usage("%s", e.text);
    GPT2 *m = technique_open(t, run, adapter, (GPT2Limits){.tokens = 1, .sequences = 1});
    technique_merge(t, run, m, form);
    gpt2_free(m);
    added_free(t->added);
    free(form);
    return !chats;
}
