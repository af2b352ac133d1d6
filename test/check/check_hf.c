/*
 * check_hf.c - model directories, read and written.
 */
#include "files/hf.h"
#include "hf_files.h"
#include "program.h"

#include <check.h>

/* ---- config.json ----------------------------------------------------------------------------- */

static int config_of(const char *text, GPT2Config *c, Error *e) {
    put_text("config.json", text);
    return hf_config(here, c, e);
}

START_TEST(reads_configs) {
    Error e;
    GPT2Config c;
    ck_assert_msg(!config_of(CONFIG, &c, &e), "%s", e.text);
    ck_assert(c.n_positions == 7 && c.vocab_size == 11 && c.n_layer == 2 && c.n_head == 2 &&
              c.n_embd == 6 && c.n_inner == 24);
    ck_assert(c.layer_norm_epsilon == 1e-5f && c.attn_pdrop == 0.1f && c.embd_pdrop == 0.2f &&
              c.resid_pdrop == 0.3f);
    ck_assert_msg(
        !config_of(
            "{\"model_type\": \"gpt2\", \"activation_function\": \"gelu_pytorch_tanh\", "
            "\"hidden_size\": 8, "
            "\"num_attention_heads\": 4, \"n_head\": 4, \"num_hidden_layers\": 3, \"n_inner\": 5, "
            "\"max_position_embeddings\": 13, \"vocab_size\": 17, \"tie_word_embeddings\": true, "
            "\"reorder_and_upcast_attn\": true, \"scale_attn_weights\": true, \"unknown\": [1, "
            "{}]}",
            &c, &e),
        "%s", e.text);
    ck_assert(c.n_positions == 13 && c.vocab_size == 17 && c.n_layer == 3 && c.n_head == 4 &&
              c.n_embd == 8 && c.n_inner == 5);
    ck_assert(c.layer_norm_epsilon == 1e-5f && c.attn_pdrop == 0.1f && c.embd_pdrop == 0.1f &&
              c.resid_pdrop == 0.1f);
    ck_assert_msg(!config_of("{" CONFIG_REST ", " CONFIG_SIZES
                             ", \"n_inner\": null, \"add_cross_attention\": false}",
                             &c, &e),
                  "%s", e.text);
    ck_assert_int_eq(c.n_inner, 24);
}
END_TEST

#define SIZES_BUT(member) \
    "\"n_embd\": 6, \"n_head\": 2, \"n_layer\": 2, \"vocab_size\": 11, " member
#define KIND "\"model_type\": \"gpt2\", "

static const struct {
    const char *text, *says[3];  // the key, what was found, what was expected
} bad_configs[] = {
    {"{" CONFIG_SIZES "}", {"model_type", "absent", "\"gpt2\""}},
    {"{\"model_type\": \"llama\", " CONFIG_SIZES "}", {"model_type", "\"llama\"", "\"gpt2\""}},
    {"{\"model_type\": 3, " CONFIG_SIZES "}", {"model_type", "3", "\"gpt2\""}},
    {"{" KIND "\"activation_function\": \"relu\", " CONFIG_SIZES "}",
     {"activation_function", "\"relu\"", "\"gelu_new\""}},
    {"{" KIND "\"activation_function\": null, " CONFIG_SIZES "}",
     {"activation_function", "null", "\"gelu_new\""}},
    {"{" KIND "\"tie_word_embeddings\": \"no\", " CONFIG_SIZES "}",
     {"tie_word_embeddings", "\"no\"", "true or false"}},
    {"{" KIND "\"scale_attn_weights\": false, " CONFIG_SIZES "}",
     {"scale_attn_weights", "false", "true"}},
    {"{" KIND "\"scale_attn_by_inverse_layer_idx\": true, " CONFIG_SIZES "}",
     {"scale_attn_by_inverse_layer_idx", "true", "false"}},
    {"{" KIND "\"add_cross_attention\": true, " CONFIG_SIZES "}",
     {"add_cross_attention", "true", "false"}},
    {"{" KIND "\"quantization_config\": {\"load_in_4bit\": true}, " CONFIG_SIZES "}",
     {"quantization_config", "expected nothing", "dequantize()"}},
    {"{" KIND "\"pruned_heads\": {\"0\": [1]}, " CONFIG_SIZES "}",
     {"pruned_heads", "expected nothing", "the base"}},
    {"{" KIND "\"add_cross_attention\": 0, " CONFIG_SIZES "}",
     {"add_cross_attention", "0", "false"}},
    {"{" KIND SIZES_BUT("\"n_ctx\": 7") "}", {"n_positions", "absent", "1 to 1000000"}},
    {"{" KIND SIZES_BUT("\"n_positions\": 0") "}", {"n_positions", "0", "1 to 1000000"}},
    {"{" KIND SIZES_BUT("\"n_positions\": -7") "}", {"n_positions", "-7", "1 to 1000000"}},
    {"{" KIND SIZES_BUT("\"n_positions\": 7.0") "}", {"n_positions", "7.0", "1 to 1000000"}},
    {"{" KIND SIZES_BUT("\"n_positions\": \"7\"") "}", {"n_positions", "\"7\"", "1 to 1000000"}},
    {"{" KIND SIZES_BUT("\"n_positions\": 4294967303") "}",
     {"n_positions", "4294967303", "1 to 1000000"}},
    {"{" KIND SIZES_BUT("\"n_positions\": 7, \"max_position_embeddings\": 8") "}",
     {"n_positions", "7", "8"}},
    {"{" KIND
     "\"n_embd\": 7, \"n_head\": 2, \"n_layer\": 2, \"n_positions\": 7, \"vocab_size\": 11}",
     {"n_embd", "7", "n_head, which is 2"}},
    {"{" KIND
     "\"n_embd\": 6, \"n_head\": 2, \"n_layer\": 1001, \"n_positions\": 7, \"vocab_size\": 11}",
     {"n_layer", "1001", "1000"}},
    {"{" KIND
     "\"n_embd\": 6, \"n_head\": 2, \"n_layer\": 2, \"n_positions\": 7, \"vocab_size\": 10000001}",
     {"vocab_size", "10000001", "10000000"}},
    {"{" KIND
     "\"n_embd\": 6, \"n_head\": 0, \"n_layer\": 2, \"n_positions\": 7, \"vocab_size\": 11}",
     {"n_head", "0", "1 to"}},
    {"{" KIND CONFIG_SIZES ", \"n_inner\": 0}", {"n_inner", "0", "1 to"}},
    {"{" KIND CONFIG_SIZES ", \"layer_norm_epsilon\": 0}", {"layer_norm_epsilon", "0", "1e-12"}},
    {"{" KIND CONFIG_SIZES ", \"layer_norm_epsilon\": \"1e-5\"}",
     {"layer_norm_epsilon", "\"1e-5\"", "number"}},
    {"{" KIND CONFIG_SIZES ", \"attn_pdrop\": 1.0}", {"attn_pdrop", "1.0", "less than 1"}},
    {"{" KIND CONFIG_SIZES ", \"embd_pdrop\": -0.5}", {"embd_pdrop", "-0.5", "at least 0"}},
    {"{" KIND CONFIG_SIZES ", \"resid_pdrop\": null}", {"resid_pdrop", "null", "number"}},
    {"{" KIND CONFIG_SIZES ", \"n_embd\": 6}", {":1:", "duplicate", ""}},
    {"[]", {"JSON object", "", ""}},
    {"{\"model_type\": \"gpt2\"\n\"x\": 1}", {":2:", "'}' expected", ""}},
};

START_TEST(refuses_configs) {
    GPT2Config c;
    for (size_t i = 0; i < sizeof bad_configs / sizeof *bad_configs; i++) {
        Error e;
        ck_assert_msg(config_of(bad_configs[i].text, &c, &e) == -1, "accepted: %s",
                      bad_configs[i].text);
        ck_says(&e, "config.json", bad_configs[i].says[0], bad_configs[i].says[1],
                bad_configs[i].says[2], NULL);
    }
    Error e;
    for (size_t n = 0; n < strlen(CONFIG); n++) {
        char *part = strndup(CONFIG, n);
        ck_assert_msg(config_of(part, &c, &e) == -1, "%zu bytes accepted", n);
        free(part);
    }
    ck_assert_int_eq(hf_config(in("nowhere"), &c, &e), -1);
    ck_says(&e, "nowhere/config.json", "does not exist", "make gpt2", NULL);
}
END_TEST

/* ---- Models ---------------------------------------------------------------------------------- */

/* Every combination of: prefix or none, four types, masks, a stored head, alignment, trained or
 * frozen. */
START_TEST(loads_every_layout) {
    static const char *const types[] = {"F32", "F16", "BF16", "F64"};
    for (int i = 0; i < 4 * 2 * 2 * 2 * 2 * 2; i++) {
        build_directory(&(Style){.type = types[i % 4],
                                 .prefix = i / 4 & 1 ? "transformer." : "",
                                 .masks = i / 8 & 1,
                                 .head = i / 16 & 1,
                                 .misaligned = i / 32 & 1 ? 3 : 0});
        GPT2 *m = ck_load(here, i / 64 & 1);
        ck_model(m);
        gpt2_free(m);
    }
}
END_TEST

/* TRL saves the critic's head with a policy, and transformers a GPT2DoubleHeadsModel with a second
   head; neither belongs to the language model. */
START_TEST(leaves_out_the_tensors_of_other_heads) {
    static const Style styles[] = {
        {.scalar = 2},
        {.scalar = 2, .head = 1, .prefix = "transformer."},
        {.extra = "multiple_choice_head.summary.weight", .prefix = "transformer."},
        {.extra = "module.multiple_choice_head.summary.bias", .prefix = "module.transformer."}};
    for (int i = 0; i < 4; i++)
        for (int frozen = 0; frozen < 2; frozen++) {
            build_directory(&styles[i]);
            GPT2 *m = ck_load(here, frozen);
            ck_model(m);
            gpt2_free(m);
        }
}
END_TEST

/* Overwrites the last float of here/model.safetensors in place. It is the last element of the
 * model's first tensor. */
static void overwrite_last(float x) {
    FILE *f = fopen(in("model.safetensors"), "r+b");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fseek(f, -4, SEEK_END), 0);
    ck_assert_uint_eq(fwrite(&x, 4, 1, f), 1);
    ck_assert_int_eq(fclose(f), 0);
}

/* A frozen model uses the mapped file: a change of the file in place is visible (on Linux, also in
   a private mapping), its removal is not. With unaligned floats, the model is a copy. */
START_TEST(maps_a_frozen_model) {
    for (int misaligned = 0; misaligned < 2; misaligned++)
        for (int frozen = 0; frozen < 2; frozen++) {
            build_directory(&(Style){.misaligned = misaligned});
            GPT2 *m = ck_load(here, frozen);
            float x, before = value(0, V * C - 1);
            overwrite_last(42);
            gpt2_read(m, 0, GPT2_WEIGHT, V * C - 1, 1, &x);
            ck_assert(x == (frozen && !misaligned ? 42 : before));
            overwrite_last(before);
            ck_assert_int_eq(unlink(in("model.safetensors")), 0);
            ck_model(m);
            gpt2_free(m);
        }
}
END_TEST

/* Tensors are copied in pieces of 262,144 floats. A tensor of more than one piece is saved, loaded,
   and compared with a head in a separate file that differs in its second piece. */
START_TEST(large_tensors_cross_pieces) {
    enum { rows = 50001, n = rows * C, differs = n - 7 };
    const GPT2Config c = {.n_positions = P,
                          .vocab_size = rows,
                          .n_layer = L,
                          .n_head = 2,
                          .n_embd = C,
                          .n_inner = F,
                          .layer_norm_epsilon = 1e-5f};
    float *x = xmalloc(2 * n * sizeof *x), *y = x + n;
    for (int k = 0; k < n; k++) x[k] = (float)k;
    GPT2 *m = gpt2_create(&c, false);
    for (int i = 1; i < TENSORS; i++) gpt2_write(m, i, GPT2_WEIGHT, 0, gpt2_tensor(m, i)->n, x);
    gpt2_write(m, 0, GPT2_WEIGHT, 0, n, x);
    Error e;
    ck_assert_msg(!hf_save(m, here, NULL, &e), "%s", e.text);
    gpt2_free(m);
    m = ck_load(here, false);
    gpt2_read(m, 0, GPT2_WEIGHT, 0, n, y);
    ck_assert_mem_eq(x, y, n * sizeof *x);
    gpt2_free(m);

    for (int wrong = 0; wrong < 2; wrong++) {
        if (wrong) x[differs] = -1;
        Build b = {0};
        build_add(&b, "lm_head.weight", "F32", "[50001,6]", x, n * sizeof *x);
        build_end(&b, "head.safetensors", 0);
        if (!wrong) ck_assert_int_eq(rename(in("model.safetensors"), in("rest.safetensors")), 0);
        put_text("model.safetensors.index.json",
                 "{\"weight_map\": {\"transformer.wte.weight\": \"rest.safetensors\", "
                 "\"lm_head.weight\": \"head.safetensors\"}}");
        m = hf_load(here, false, &e);
        ck_assert_msg((m == NULL) == wrong, "%s", e.text);
        if (wrong)
            ck_says(&e, "head.safetensors",
                    "element 299999 of lm_head.weight is -1, expected 299999", NULL);
        else
            gpt2_free(m);
    }
    free(x);
}
END_TEST

static void ck_save(const GPT2 *m, const char *dir, const char *from) {
    Error e;
    ck_assert_msg(!hf_save(m, dir, from, &e), "%s", e.text);
}

/* torch.compile, DistributedDataParallel and TRL's value head put words before every name. */
START_TEST(reads_the_names_of_wrappers) {
    static const Style styles[] = {
        {.prefix = "_orig_mod.transformer.", .outer = "_orig_mod.", .head = 1},
        {.prefix = "module.transformer.", .outer = "module.", .head = 1},
        {.prefix = "module.", .head = 1},
        {.prefix = "_orig_mod.module.transformer.", .masks = true},
        {.prefix = "module._orig_mod.", .without = "none"},
        {.prefix = "pretrained_model.transformer."},
    };
    for (size_t i = 0; i < sizeof styles / sizeof *styles; i++) {
        build_directory(&styles[i]);
        // an lm_head outside the wrapper is no part of the model
        Error e;
        GPT2 *m = hf_load(here, false, &e);
        if (i == 2) {
            ck_assert_ptr_null(m);
            ck_says(&e, "lm_head.weight does not belong", NULL);
            continue;
        }
        ck_assert_msg(m != NULL, "%zu: %s", i, e.text);
        ck_model(m);
        gpt2_free(m);
    }
    // the value head is outside the model that it wraps
    static const Style valued[] = {
        {.prefix = "pretrained_model.transformer.", .scalar = 2},
        {.prefix = "module.pretrained_model.transformer.", .outer = "module.", .scalar = 2},
        {.prefix = "_orig_mod.transformer.", .outer = "_orig_mod.", .scalar = 1}};
    for (int i = 0; i < 3; i++) {
        bool found;
        Error e;
        float x;
        build_directory(&valued[i]);
        GPT2 *m = hf_load_head(here, SCORE_HEAD, false, &found, &e);
        ck_assert_msg(m != NULL, "%s", e.text);
        ck_assert(found);
        gpt2_read(m, TENSORS, GPT2_WEIGHT, 2, 1, &x);
        ck_assert(x == value(99, 2));
        gpt2_free(m);
        m = hf_load(here, false, &e);  // a value head beside a language model is not used
        ck_assert((m != NULL) == (i < 2));
        if (m) ck_model(m);
        gpt2_free(m);
    }
    build_directory(&(Style){.prefix = "model.transformer."});
    Error e;
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "wte.weight", "missing", "model.transformer.", NULL);
}
END_TEST

static const char untied_config[] = "{" KIND
                                    "\"tie_word_embeddings\": false, \"n_embd\": 6, \"n_head\": 2, "
                                    "\"n_layer\": 2, \"n_positions\": 7, \"vocab_size\": 11}";

/* safetensors' save_model keeps one name of a tied pair, and that may be the head's. */
START_TEST(a_tied_embedding_may_be_kept_as_the_head) {
    static const Style styles[] = {
        {.without = "wte.weight", .head = 1},
        {.without = "wte.weight", .head = 1, .prefix = "transformer."},
        {.without = "wte.weight", .head = 1, .prefix = "module.transformer.", .outer = "module."}};
    Error e;
    for (int i = 0; i < 3; i++)
        for (int untied = 0; untied < 2; untied++) {
            build_directory(&styles[i]);
            if (untied) put_text("config.json", untied_config);
            GPT2 *m = hf_load(here, false, &e);
            ck_assert_msg((m == NULL) == (untied == 1), "%s", e.text);
            if (m)
                ck_model(m);
            else
                ck_says(&e, "wte.weight", "missing", "tie_word_embeddings false", NULL);
            gpt2_free(m);
        }
}
END_TEST

/* tie_word_embeddings false: the file must have a head, and it must be the embedding. */
START_TEST(an_untied_head_that_is_equal_is_read) {
    Error e;
    for (int head = 0; head < 3; head++) {
        build_directory(&(Style){.head = head});
        put_text("config.json", untied_config);
        GPT2 *m = hf_load(here, false, &e);
        ck_assert_msg((m != NULL) == (head == 1), "%s", e.text);
        if (head == 0) ck_says(&e, "lm_head.weight is missing", "tie_word_embeddings false", NULL);
        if (head == 2) ck_says(&e, "untied head", "element 40", NULL);
        if (!m) continue;
        ck_model(m);
        ck_save(m, in("out"), here);
        Str config = get("out/config.json");
        ck_assert_ptr_nonnull(strstr(config.s, "\"tie_word_embeddings\": true"));
        free(config.s);
        gpt2_free(m);
        m = ck_load(in("out"), true);
        gpt2_free(m);
    }
}
END_TEST

START_TEST(refuses_models) {
    static const struct {
        Style style;
        const char *says[4];
    } bad[] = {
        {{.head = 2}, {"untied head", "element 40 of lm_head.weight", "0.75", "wte.weight"}},
        {{.head = 2, .prefix = "transformer."},
         {"untied head", "element 40 of lm_head", "0.75", "transformer.wte.weight"}},
        {{.head = 2, .without = "h.1.attn.c_attn.bias"}, {"untied head"}},
        {{.head = 3}, {"lm_head.weight", "[6,11]", "[11,6]"}},
        {{.without = "wte.weight"}, {"wte.weight", "missing"}},
        {{.without = "h.1.attn.c_attn.bias"}, {"h.1.attn.c_attn.bias is missing", "[18]"}},
        {{.without = "ln_f.bias", .prefix = "transformer."},
         {"transformer.ln_f.bias is missing", "[6]"}},
        {{.without = "wpe.weight", .head = 1}, {"wpe.weight is missing", "[7,6]"}},
        {{.reshaped = "h.0.mlp.c_fc.weight"}, {"h.0.mlp.c_fc.weight", "[24,6]", "[6,24]"}},
        {{.reshaped = "wte.weight"}, {"wte.weight", "[6,11]", "[11,6]"}},
        {{.reshaped = "h.1.ln_2.bias"}, {"h.1.ln_2.bias", "[6,1]", "[6]"}},
        {{.retyped = "h.0.ln_1.weight"}, {"h.0.ln_1.weight", "I32", "F32"}},
        {{.retyped = "wte.weight", .head = 1}, {"wte.weight", "I32", "F32"}},
        {{.extra = "h.2.ln_1.weight"}, {"h.2.ln_1.weight", "does not belong to the model"}},
        {{.extra = "score.weight"}, {"score.weight", "reward or value model"}},
        {{.extra = "h.0.crossattention.c_attn.weight"},
         {"h.0.crossattention.c_attn.weight", "does not belong to the model"}},
        {{.extra = "h..attn.bias"}, {"h..attn.bias", "does not belong to the model"}},
        {{.extra = "h.0.attn.bias", .prefix = "transformer."},
         {"h.0.attn.bias", "transformer.wte.weight"}},
        {{.extra = "transformer.h.0.ln_1.weight"},
         {"transformer.h.0.ln_1.weight", "does not belong to the model"}},
        {{.extra = "transformer.wte.weight"}, {"both wte.weight and transformer.wte.weight"}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (int frozen = 0; frozen < 2; frozen++) {
            build_directory(&bad[i].style);
            Error e = {0};
            ck_assert_msg(!hf_load(here, frozen, &e), "case %zu accepted", i);
            ck_says(&e, "model.safetensors", NULL);
            for (int k = 0; k < 4 && bad[i].says[k]; k++) ck_says(&e, bad[i].says[k], NULL);
        }
}
END_TEST

/* config.json may promise more than the files have. No memory is allocated before that is checked.
 */
START_TEST(refuses_a_config_that_promises_too_much) {
    Error e;
    build_directory(&(Style){0});
    put_text("config.json",
             "{" KIND
             "\"n_embd\": 65536, \"n_head\": 65536, \"n_layer\": 1000, \"n_positions\": 1000000, "
             "\"n_inner\": 1000000, \"vocab_size\": 10000000}");
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "wte.weight", "[11,6]", "[10000000,65536]", NULL);
}
END_TEST

START_TEST(refuses_directories_without_a_model) {
    Error e;
    put_text("adapter_config.json", "{}");
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "holds an adapter", "--adapter", NULL);
    put_text("config.json", CONFIG);
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "has no weights", "model.safetensors", "pytorch_model.bin", NULL);
    put_text("pytorch_model.bin", "");
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "pytorch_model.bin", "0 bytes", "fetch", NULL);
    build_model("model.safetensors", &(Style){0}, 0, TENSORS);
    Str file = get("model.safetensors");
    put("model.safetensors", file.s, file.n - 1);
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "model.safetensors", "wte.weight", "cut short", NULL);
    free(file.s);
}
END_TEST

/* Writes the model as two files. The index maps the first listed tensors, after more. */
static void build_shards(const char *more, int listed) {
    Spec s[TENSORS];
    Str index = {0};
    specification(s);
    put_text("config.json", CONFIG);
    build_model("one.safetensors", &(Style){.prefix = "transformer.", .type = "F16"}, 0, 10);
    build_model("two.safetensors",
                &(Style){.prefix = "transformer.", .masks = true, .misaligned = 5}, 10, TENSORS);
    str_printf(&index, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {%s", more);
    for (int i = 0; i < listed; i++)
        str_printf(&index, "%s\"transformer.%s\": \"%s.safetensors\"", i || *more ? ", " : "",
                   s[i].name, i < 10 ? "one" : "two");
    str_printf(&index, "}}");
    put("model.safetensors.index.json", index.s, index.n);
    free(index.s);
}

START_TEST(loads_shards) {
    build_shards("", TENSORS);
    for (int frozen = 0; frozen < 2; frozen++) {
        GPT2 *m = ck_load(here, frozen);
        ck_model(m);
        gpt2_free(m);
    }
    build_model("one.safetensors", &(Style){.prefix = "transformer."}, 0,
                10);  // all F32 and aligned: two mappings
    build_model("two.safetensors", &(Style){.prefix = "transformer."}, 10, TENSORS);
    GPT2 *m = ck_load(here, true);
    ck_assert_int_eq(unlink(in("one.safetensors")), 0);
    ck_model(m);
    gpt2_free(m);
}
END_TEST

START_TEST(refuses_shards) {
    static const struct {
        const char *more;
        int listed;
        const char *says[3];
    } bad[] = {
        {"", 0, {"index.json", "weight_map"}},
        {"", 10, {"transformer.h.0.mlp.c_fc.weight", "missing"}},
        {"\"a\": \"../one.safetensors\"", TENSORS, {"index.json", "../one.safetensors"}},
        {"\"a\": \"/etc/passwd\"", TENSORS, {"index.json", "/etc/passwd"}},
        {"\"a\": \"\"", TENSORS, {"index.json", "\"\""}},
        {"\"a\": 1", TENSORS, {"index.json", " a "}},
        {"\"a\": \"three.safetensors\"", TENSORS, {"three.safetensors", "No such file"}},
        {"\"a\": \"one.safetensors\"", TENSORS, {"tensor a ", "one.safetensors"}},
        {"\"transformer.ln_f.bias\": \"one.safetensors\"",
         10,
         {"transformer.ln_f.bias", "one.safetensors"}},
    };
    Error e;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        build_shards(bad[i].more, bad[i].listed);
        ck_assert_msg(!hf_load(here, false, &e), "case %zu accepted", i);
        for (int k = 0; k < 3 && bad[i].says[k]; k++) ck_says(&e, bad[i].says[k], NULL);
    }
    build_shards("", TENSORS);
    build_model("one.safetensors", &(Style){.prefix = "transformer."}, 0,
                11);  // one tensor in both
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "two.safetensors", "transformer.h.0.mlp.c_fc.weight", "one.safetensors", NULL);
    build_shards("", TENSORS);
    put_text("model.safetensors.index.json", "{\"weight_map\": {");
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "index.json:1:", NULL);
}
END_TEST

/* A real, small model whose head is not tied to the token embedding. */
START_TEST(refuses_the_untied_head_of_a_real_model) {
    const char *shared = getenv("SHARED");
    char path[512];
    Str file = {0};
    Error e;
    snprintf(path, sizeof path, "%s/data/gpt-nano-sort/model.safetensors",
             shared ? shared : "../shared");
    if (access(path, R_OK)) {
        printf("skipped: %s is not there\n", path);
        return;
    }
    ck_assert_int_eq(read_file(path, 1 << 24, &file, &e), 0);
    put("model.safetensors", file.s, file.n);
    free(file.s);
    put_text(
        "config.json",
        "{" KIND
        "\"n_embd\": 48, \"n_head\": 3, \"n_layer\": 3, \"n_positions\": 11, \"vocab_size\": 3}");
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "model.safetensors", "untied head", "element 0 of lm_head.weight", "wte.weight",
            NULL);
}
END_TEST

/* ---- saving ---------------------------------------------------------------------------------- */

/* here/NAME/model.safetensors must have every tensor of the model with its full name and the
 * elements of value(), and nothing else. */
static void ck_saved(const char *name) {
    Spec s[TENSORS];
    Found f[TENSORS + 1];
    const char *data;
    char path[64];
    snprintf(path, sizeof path, "%s/model.safetensors", name);
    Str file = get(path);
    ck_assert_int_eq(take_apart(file, "\"format\":\"pt\"", f, TENSORS + 1, &data),
                     specification(s));
    for (int i = 0; i < TENSORS; i++) {
        int k = 0;
        while (k < TENSORS && strcmp(f[k].name + strlen("transformer."), s[i].name)) k++;
        ck_assert_msg(k < TENSORS && !strncmp(f[k].name, "transformer.", 12), "%s is not there",
                      s[i].name);
        ck_assert_int_eq(f[k].ndim, s[i].ndim);
        for (int d = 0; d < s[i].ndim; d++) ck_assert_uint_eq(f[k].shape[d], (size_t)s[i].shape[d]);
        Str expected = encoded("F32", i, elements(&s[i]));
        ck_assert_uint_eq(expected.n, f[k].end - f[k].begin);
        ck_assert_mem_eq(data + f[k].begin, expected.s, expected.n);
        free(expected.s);
    }
    free(file.s);
}

START_TEST(saves_what_it_loaded) {
    static const char *const copied[] = {"vocab.json",
                                         "merges.txt",
                                         "tokenizer.json",
                                         "tokenizer_config.json",
                                         "special_tokens_map.json",
                                         "added_tokens.json",
                                         "generation_config.json",
                                         "chat_template.jinja",
                                         "chat_template_b.jinja"};
    build_directory(&(Style){.type = "BF16", .masks = true, .head = 1});
    for (size_t i = 0; i < sizeof copied / sizeof *copied; i++) {
        char content[100];
        const bool json = strstr(copied[i], ".json");
        int n =
            snprintf(content, sizeof content,
                     json ? "{\r\n\"what\":  \"%s says\"}\t" : "what %s says,\r\n%c and not more",
                     copied[i], 0);
        put(copied[i], content, (size_t)n);
    }
    put_text("pytorch_model.bin", "weights of another time");
    GPT2 *m = ck_load(here, false);
    ck_save(m, in("a/b"), here);  // neither exists yet
    ck_saved("a/b");
    ck_assert_int_eq(files_in("a/b"), 2 + (int)(sizeof copied / sizeof *copied));
    for (size_t i = 0; i < sizeof copied / sizeof *copied; i++) {
        char path[64];
        snprintf(path, sizeof path, "a/b/%s", copied[i]);
        ck_same(get(path), get(copied[i]));
    }
    gpt2_free(m);
    m = ck_load(in("a/b"), true);
    ck_model(m);
    ck_save(m, in("a/b"), in("a/b"));  // onto the files it is mapped from
    ck_model(m);
    gpt2_free(m);
    ck_saved("a/b");
    ck_assert_int_eq(files_in("a/b"), 2 + (int)(sizeof copied / sizeof *copied));
    ck_same(get("a/b/vocab.json"), get("vocab.json"));
}
END_TEST

/* Only the necessary keys of a config change. The others keep their order and their digits. */
START_TEST(patches_the_config) {
    build_directory(&(Style){0});
    GPT2 *m = ck_load(here, false);
    put_text("config.json",
             "{\"zebra\": [1, null, \"\\u00e9\"], \"architectures\": [\"GPT2Model\"],\n"
             "\"model_type\": \"gpt2\", \"layer_norm_epsilon\": 1e-05, \"third\": 0.1, \"long\": "
             "9.999999747378752e-06,\n"
             "\"quantization_config\": {\"bits\": 4}, \"n_embd\": 6, \"num_attention_heads\": 2, "
             "\"n_layer\": 2,\n"
             "\"n_positions\": 7, \"vocab_size\": 3, \"dtype\": \"float16\"}");
    ck_save(m, in("out"), here);
    ck_same(get("out/config.json"),
            text("{\n"
                 "  \"zebra\": [\n    1,\n    null,\n    \"\303\251\"\n  ],\n"
                 "  \"architectures\": [\n    \"GPT2LMHeadModel\"\n  ],\n"
                 "  \"model_type\": \"gpt2\",\n  \"layer_norm_epsilon\": 1e-5,\n  \"third\": "
                 "0.1,\n  \"long\": 9.999999747378752e-6,\n"
                 "  \"n_embd\": 6,\n  \"num_attention_heads\": 2,\n  \"n_layer\": 2,\n  "
                 "\"n_positions\": 7,\n  \"vocab_size\": 11,\n"
                 "  \"dtype\": \"float32\"\n}\n"));
    put_text("config.json",
             "{" KIND CONFIG_SIZES
             ", \"torch_dtype\": \"float16\", \"n_inner\": null}");  // dtype's older name
    ck_save(m, in("out"), here);
    Str config = get("out/config.json");
    ck_assert_ptr_nonnull(strstr(config.s, "\"torch_dtype\": \"float32\""));
    ck_assert_ptr_null(strstr(config.s, "\"dtype\""));
    ck_assert_ptr_nonnull(strstr(config.s, "\"n_inner\": null"));
    free(config.s);
    gpt2_free(m);
}
END_TEST

START_TEST(saves_a_model_that_came_from_nowhere) {
    const GPT2Config c = {.n_positions = P,
                          .vocab_size = V,
                          .n_layer = L,
                          .n_head = 3,
                          .n_embd = C,
                          .n_inner = F,
                          .layer_norm_epsilon = 1e-5f,
                          .embd_pdrop = 0.1f,
                          .attn_pdrop = 0,
                          .resid_pdrop = 0.12345679f};
    GPT2 *m = gpt2_create(&c, false);
    for (int i = 0; i < TENSORS; i++)
        for (int k = 0; k < (int)gpt2_tensor(m, i)->n; k++)
            gpt2_write(m, i, GPT2_WEIGHT, (size_t)k, 1, &(float){value(i, k)});
    ck_save(m, in("out"), NULL);
    gpt2_free(m);
    ck_saved("out");
    ck_assert_int_eq(files_in("out"), 2);
    GPT2Config back;
    Error e;
    ck_assert_msg(!hf_config(in("out"), &back, &e), "%s", e.text);
    ck_assert(back.n_positions == P && back.vocab_size == V && back.n_layer == L &&
              back.n_head == 3 && back.n_embd == C && back.n_inner == F &&
              back.layer_norm_epsilon == 1e-5f && back.embd_pdrop == 0.1f && back.attn_pdrop == 0 &&
              back.resid_pdrop == 0.12345679f);
    Str config = get("out/config.json");
    ck_assert_ptr_nonnull(strstr(config.s, "\"GPT2LMHeadModel\""));
    ck_assert_ptr_nonnull(strstr(config.s, "\"layer_norm_epsilon\": 1e-5"));
    ck_assert_ptr_nonnull(
        strstr(config.s, "\"bos_token_id\": null"));  // 50256 is none of 11 tokens
    free(config.s);
}
END_TEST

/* ---- scalar heads ---------------------------------------------------------------------------- */

#define CLASSIFIER                                                                    \
    ", \"architectures\": [\"GPT2ForSequenceClassification\"], \"eos_token_id\": 7, " \
    "\"id2label\": {\"0\": \"LABEL_0\"}}"

static GPT2 *ck_load_head(const char *dir, GPT2Head head, bool frozen, bool expected) {
    Error e;
    bool found = !expected;
    GPT2 *m = hf_load_head(dir, head, frozen, &found, &e);
    ck_assert_msg(m != NULL, "%s", e.text);
    ck_assert(found == expected);
    ck_assert_int_eq(gpt2_tensors(m), TENSORS + (int)head);
    return m;
}

static void ck_tensor(const GPT2 *m, int i, const char *name, const float *want, size_t n) {
    float x[V * C];
    ck_assert_str_eq(gpt2_tensor(m, i)->name, name);
    ck_assert_uint_eq(gpt2_tensor(m, i)->n, n);
    gpt2_read(m, i, GPT2_WEIGHT, 0, n, x);
    for (size_t k = 0; k < n; k++)
        ck_assert_msg(x[k] == want[k], "%s[%zu] is %g, expected %g", name, k, (double)x[k],
                      (double)want[k]);
}

START_TEST(reads_and_writes_scalar_heads) {
    float w[C + 1], none[C + 1] = {0};
    Found f[TENSORS + 3];
    const char *data;
    for (int k = 0; k <= C; k++) w[k] = value(99, k);
    for (int frozen = 0; frozen <= 1; frozen++) {
        // a sequence classification model, prefixed as the library writes it
        build_directory(&(Style){.prefix = "transformer.", .scalar = 1});
        put_text("config.json", "{" KIND CONFIG_SIZES CLASSIFIER);
        GPT2 *m = ck_load_head(here, SCORE_HEAD, frozen, true);
        ck_tensor(m, TENSORS, "score.weight", w, C);
        ck_save(m, in("score"), here);
        Str file = get("score/model.safetensors"), config = get("score/config.json");
        ck_assert_int_eq(take_apart(file, "\"format\":\"pt\"", f, TENSORS + 3, &data), TENSORS + 1);
        int at = 0;
        while (at <= TENSORS && strcmp(f[at].name, "score.weight")) at++;
        ck_assert(at <= TENSORS && f[at].ndim == 2 && f[at].shape[0] == 1 && f[at].shape[1] == C);
        ck_assert_mem_eq(data + f[at].begin, w, 4 * C);
        ck_assert_ptr_nonnull(strstr(config.s, "\"GPT2ForSequenceClassification\""));
        ck_assert_ptr_nonnull(strstr(config.s, "\"pad_token_id\": 7"));
        free(file.s);
        free(config.s);
        gpt2_free(m);
        m = ck_load_head(in("score"), SCORE_HEAD, frozen, true);
        ck_tensor(m, TENSORS, "score.weight", w, C);
        gpt2_free(m);
        // the same weights as a language model with a value head, whose bias is 0; saved in
        // TRL's form
        m = ck_load_head(in("score"), LM_AND_VALUE_HEAD, frozen, true);
        ck_tensor(m, TENSORS, "v_head.summary.weight", w, C);
        ck_tensor(m, TENSORS + 1, "v_head.summary.bias", none, 1);
        ck_save(m, in("value"), here);
        gpt2_free(m);
        config = get("value/config.json");
        ck_assert_ptr_nonnull(strstr(config.s, "\"GPT2LMHeadModel\""));
        free(config.s);
        m = ck_load_head(in("value"), LM_AND_VALUE_HEAD, frozen, true);
        gpt2_free(m);
    }
}
END_TEST

/* The bias of the older form is added to ln_f.bias, so that w . ln_f(h) grows by it for every h. */
START_TEST(folds_the_bias_of_a_value_head) {
    float w[C + 1], ln_f[C], folded[C];
    for (int k = 0; k <= C; k++) w[k] = value(99, k);
    for (int k = 0; k < C; k++) ln_f[k] = value(TENSORS - 1, k);
    build_directory(&(Style){.scalar = 2});
    for (int frozen = 0; frozen <= 1; frozen++) {
        GPT2 *m = ck_load_head(here, SCORE_HEAD, frozen, true);
        ck_tensor(m, TENSORS, "score.weight", w, C);
        gpt2_read(m, TENSORS - 1, GPT2_WEIGHT, 0, C, folded);
        double more = 0;
        for (int k = 0; k < C; k++) more += (double)w[k] * ((double)folded[k] - (double)ln_f[k]);
        ck_assert_double_eq_tol(more, (double)w[C], 1e-5);
        ck_assert_double_gt(fabs((double)w[C]), 0.05);
        gpt2_free(m);
    }
    GPT2 *m = ck_load_head(here, LM_AND_VALUE_HEAD, true, true);  // which has a bias of its own
    ck_tensor(m, TENSORS + 1, "v_head.summary.bias", w + C, 1);
    ck_tensor(m, TENSORS - 1, "ln_f.bias", ln_f, C);
    gpt2_free(m);
}
END_TEST

START_TEST(a_language_model_has_no_scalar_head_and_a_reward_model_is_no_language_model) {
    Error e;
    float none[C] = {0};
    build_directory(&(Style){0});
    for (int frozen = 0; frozen <= 1; frozen++) {
        GPT2 *m = ck_load_head(here, SCORE_HEAD, frozen, false);
        ck_tensor(m, TENSORS, "score.weight", none, C);
        gpt2_free(m);
    }
    build_directory(&(Style){.scalar = 1});
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "reward or value model", NULL);
    put_text("config.json", "{" KIND CONFIG_SIZES CLASSIFIER);
    ck_assert_ptr_null(hf_load(here, false, &e));
    ck_says(&e, "GPT2ForSequenceClassification", "expected a language model", NULL);
    put_text("config.json",
             "{" KIND CONFIG_SIZES ", \"architectures\": [\"GPT2ForSequenceClassification\"]}");
    ck_assert_ptr_null(hf_load_head(here, SCORE_HEAD, false, NULL, &e));
    ck_says(&e, "config.json", "2 labels", "expected 1", NULL);
}
END_TEST

/* A full disk, a directory in the place of a file, a missing source: after any failure the old
 * model is still complete. */
START_TEST(a_failed_save_costs_nothing) {
    static const char *const full[] = {"out/model.safetensors", "out/config.json",
                                       "out/vocab.json"};
    Error e;
    build_directory(&(Style){.head = 1});
    put_text("vocab.json", "{\"old\": 1}");
    GPT2 *m = ck_load(here, false);
    ck_save(m, in("out"), here);
    gpt2_write(m, 0, GPT2_WEIGHT, 0, 1, &(float){99});
    put_text("vocab.json", "{\"new\": 1}");
    for (int i = 0; i < 3; i++) {
        fill_disk_for(full[i]);
        ck_assert_int_eq(hf_save(m, in("out"), here, &e), -1);
        ck_says(&e, full[i], "No space left", "unchanged", NULL);
        ck_saved("out");
        ck_same(get("out/vocab.json"), text("{\"old\": 1}"));
        ck_assert_int_eq(files_in("out"), 3);
    }
    ck_assert_int_eq(hf_save(m, in("vocab.json"), here, &e), -1);
    ck_says(&e, "vocab.json", "Not a directory", NULL);
    ck_assert_int_eq(hf_save(m, in("vocab.json/x"), here, &e), -1);
    ck_says(&e, "vocab.json/x", "Not a directory", NULL);
    ck_assert_int_eq(hf_save(m, "", here, &e), -1);
    ck_assert_int_eq(hf_save(m, in("out"), in("nowhere"), &e), -1);
    ck_says(&e, "nowhere", NULL);
    ck_saved("out");
    gpt2_free(m);
}
END_TEST

/* ---- moments --------------------------------------------------------------------------------- */

static GPT2 *reserved(bool train) {
    GPT2 *m = ck_load(here, false);
    gpt2_reserve(m, &(GPT2Limits){.tokens = 4, .sequences = 1, .scored = 4, .train = train});
    return m;
}

static SafeTensors *save_moments(const GPT2 *m, const char *prefix) {
    Error e;
    STWriter *w = st_new();
    st_note(w, "step", "3");
    st_declare(w, "own", 1, (size_t[]){1});
    hf_declare_moments(w, m, prefix);
    ck_assert_msg(!st_begin(w, in("state.safetensors"), &e), "%s", e.text);
    ck_assert_int_eq(st_write(w, &(float){8}, 1, &e), 0);
    ck_assert_msg(!hf_write_moments(w, m, &e), "%s", e.text);
    ck_assert_msg(!st_end(w, true, &e), "%s", e.text);
    SafeTensors *st = st_open(in("state.safetensors"), &e);
    ck_assert_msg(st != NULL, "%s", e.text);
    return st;
}

/* Moment 1 or 2 of element k of tensor i. */
static float moment(int i, int k, int which) {
    return (float)(1000 * which + 10 * i) + (float)k / 1024;
}

START_TEST(restores_moments) {
    static const GPT2Part parts[2] = {GPT2_MOMENT1, GPT2_MOMENT2};
    build_directory(&(Style){0});
    GPT2 *m = reserved(true), *other = reserved(true);
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < TENSORS; i++)
            for (int k = 0; k < (int)gpt2_tensor(m, i)->n; k++)
                gpt2_write(m, i, parts[which], (size_t)k, 1, &(float){moment(i, k, 1 + which)});
    SafeTensors *st = save_moments(m, "value.");
    gpt2_free(m);
    Error e;
    float x;
    ck_assert_int_eq(st_count(st), 1 + 2 * TENSORS);
    ck_assert_uint_eq(st_find(st, "value.m.h.1.mlp.c_proj.weight")->shape[0], F);
    ck_assert_int_eq(st_floats(st_find(st, "value.v.ln_f.bias"), 2, 1, &x, &e), 0);
    ck_assert(x == moment(TENSORS - 1, 2, 2));
    ck_assert_msg(!hf_read_moments(st, other, "value.", &e), "%s", e.text);
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < TENSORS; i++)
            for (int k = 0; k < (int)gpt2_tensor(other, i)->n; k++) {
                gpt2_read(other, i, parts[which], (size_t)k, 1, &x);
                ck_assert(x == moment(i, k, 1 + which));
            }
    ck_model(other);
    ck_assert_int_eq(hf_read_moments(st, other, "", &e), -1);
    ck_says(&e, "state.safetensors", "m.wte.weight", "missing", NULL);
    st_close(st);
    gpt2_free(other);
}
END_TEST

/* A state with other trained tensors, or with another shape or type, is refused before anything
 * changes. */
START_TEST(refuses_moments_of_another_run) {
    build_directory(&(Style){0});
    Error e;
    GPT2 *all = reserved(true), *none = reserved(false);
    gpt2_write(all, 0, GPT2_MOMENT1, 0, 1, &(float){5});
    SafeTensors *st = save_moments(all, "");
    ck_assert_int_eq(hf_read_moments(st, none, "", &e), -1);
    ck_says(&e, "state.safetensors", "m.wte.weight", "does not train", NULL);
    st_close(st);
    st = save_moments(none, "");
    ck_assert_int_eq(st_count(st), 1);
    ck_assert_int_eq(hf_read_moments(st, all, "", &e), -1);
    ck_says(&e, "state.safetensors", "m.wte.weight", "missing", NULL);
    st_close(st);

    for (int fault = 0; fault < 3;
         fault++) {  // the last tensor has another shape, another type, or is missing
        Spec s[TENSORS];
        Build b = {0};
        float zeros[V * C + C * F] = {0};
        specification(s);
        for (int i = 0; i < 2 * TENSORS; i++) {
            const Spec *t = &s[i % TENSORS];
            char name[96], shape[48];
            bool last = i == 2 * TENSORS - 1;
            if (last && fault == 2) break;
            snprintf(name, sizeof name, "%s%s", i < TENSORS ? "m." : "v.", t->name);
            if (t->ndim == 2)
                snprintf(shape, sizeof shape, "[%d,%d]", t->shape[0], t->shape[1]);
            else
                snprintf(shape, sizeof shape, last && fault == 0 ? "[1,%d]" : "[%d]", t->shape[0]);
            build_add(&b, name, last && fault == 1 ? "I32" : "F32", shape, zeros,
                      4 * (size_t)elements(t));
        }
        build_end(&b, "state.safetensors", 0);
        st = st_open(in("state.safetensors"), &e);
        ck_assert_msg(st != NULL, "%s", e.text);
        ck_assert_int_eq(hf_read_moments(st, all, "", &e), -1);
        ck_says(&e, "v.ln_f.bias",
                fault == 0   ? "[1,6]"
                : fault == 1 ? "I32"
                             : "missing",
                fault == 0   ? "[6]"
                : fault == 1 ? "F32"
                             : "trains",
                NULL);
        st_close(st);
    }
    float x;
    gpt2_read(all, 0, GPT2_MOMENT1, 0, 1, &x);
    ck_assert(x == 5);
    gpt2_free(all);
    gpt2_free(none);
}
END_TEST

/* ---- Suite ----------------------------------------------------------------------------------- */

int main(void) {
    Suite *suite = suite_create("hf");
    TCase *tc = tcase_create("hf");
    tcase_set_timeout(tc, 300);  // for sanitizers and busy machines
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, reads_configs);
    tcase_add_test(tc, refuses_configs);
    tcase_add_test(tc, loads_every_layout);
    tcase_add_test(tc, leaves_out_the_tensors_of_other_heads);
    tcase_add_test(tc, maps_a_frozen_model);
    tcase_add_test(tc, large_tensors_cross_pieces);
    tcase_add_test(tc, reads_the_names_of_wrappers);
    tcase_add_test(tc, a_tied_embedding_may_be_kept_as_the_head);
    tcase_add_test(tc, an_untied_head_that_is_equal_is_read);
    tcase_add_test(tc, refuses_models);
    tcase_add_test(tc, refuses_a_config_that_promises_too_much);
    tcase_add_test(tc, refuses_directories_without_a_model);
    tcase_add_test(tc, loads_shards);
    tcase_add_test(tc, refuses_shards);
    tcase_add_test(tc, refuses_the_untied_head_of_a_real_model);
    tcase_add_test(tc, saves_what_it_loaded);
    tcase_add_test(tc, patches_the_config);
    tcase_add_test(tc, saves_a_model_that_came_from_nowhere);
    tcase_add_test(tc, a_failed_save_costs_nothing);
    tcase_add_test(tc, reads_and_writes_scalar_heads);
    tcase_add_test(tc, folds_the_bias_of_a_value_head);
    tcase_add_test(tc, a_language_model_has_no_scalar_head_and_a_reward_model_is_no_language_model);
    tcase_add_test(tc, restores_moments);
    tcase_add_test(tc, refuses_moments_of_another_run);
    suite_add_tcase(suite, tc);
    int failed = run_suite(suite);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
