/*
 * check_peft.c - adapter directories of PEFT and of AdapterHub.
 */
#include "../../common/files/peft.c"  // for read_adapter_config
#include "../golden/golden_torch.h"
#include "hf_files.h"
#include "program.h"

#include <check.h>
#include <sys/stat.h>

/* ---- adapters -------------------------------------------------------------------------------- */

static const GPT2Tensor added[] = {
    {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight", 2, {2, C}, 2 * C, false},
    {"base_model.model.transformer.h.0.attn.c_attn.lora_B.weight", 2, {3 * C, 2}, 6 * C, false},
    {"transformer.h.1.output_adapters.adapters.x.adapter_up.bias", 1, {C, 1}, C, false}};
enum { ADDED = sizeof added / sizeof *added };

static GPT2 *with_added(void) {
    GPT2 *m = ck_load(here, true);
    gpt2_reserve(m, &(GPT2Limits){.tokens = 4,
                                  .sequences = 1,
                                  .scored = 4,
                                  .train = true,
                                  .trains = TRAIN_NONE,
                                  .more = added,
                                  .more_n = ADDED});
    return m;
}

static float added_value(int i, int k) {
    return (float)(100 * i) + (float)k / 4 + 1;
}  // exact as F16, too

static void fill_added(GPT2 *m) {
    for (int i = 0; i < ADDED; i++)
        for (int k = 0; k < (int)added[i].n; k++)
            gpt2_write(m, TENSORS + i, GPT2_WEIGHT, (size_t)k, 1, &(float){added_value(i, k)});
}

static void ck_added(const GPT2 *m, bool there) {
    float x;
    for (int i = 0; i < ADDED; i++)
        for (int k = 0; k < (int)added[i].n; k++) {
            gpt2_read(m, TENSORS + i, GPT2_WEIGHT, (size_t)k, 1, &x);
            ck_assert_msg(x == (there ? added_value(i, k) : 0), "%s[%d] is %g", added[i].name, k,
                          (double)x);
        }
}

START_TEST(saves_and_loads_what_a_technique_added) {
    build_directory(&(Style){0});
    Error e;
    GPT2 *m = with_added(), *other = with_added();
    fill_added(m);
    ck_assert_msg(
        !hf_save_added(m, in("a/b"), "w.safetensors", "{\"peft_type\": \"LORA\"}", NULL, &e), "%s",
        e.text);
    ck_assert_int_eq(files_in("a/b"), 2);
    ck_same(get("a/b/adapter_config.json"), text("{\"peft_type\": \"LORA\"}\n"));
    SafeTensors *st = st_open(in("a/b/w.safetensors"), &e);
    ck_assert_msg(st != NULL, "%s", e.text);
    ck_assert_int_eq(st_count(st), ADDED);
    ck_assert_str_eq(st_metadata(st, "format"), "pt");
    for (int i = 0; i < ADDED; i++) {
        const STTensor *t = st_find(st, added[i].name);
        ck_assert(t && t->type == ST_F32 && t->ndim == added[i].ndim && t->n == added[i].n &&
                  t->shape[0] == (size_t)added[i].shape[0]);
    }
    st_close(st);
    ck_added(other, false);
    ck_assert_msg(!hf_load_added(other, in("a/b"), "w.safetensors", &e), "%s", e.text);
    ck_added(other, true);
    // cannot be written
    ck_assert_int_eq(hf_save_added(m, in("a/b/w.safetensors"), "w", "{}", NULL, &e), -1);
    ck_assert_int_eq(hf_save_added(m, in("a/b"), "none/w", "{}", NULL, &e), -1);
    ck_same(get("a/b/adapter_config.json"), text("{\"peft_type\": \"LORA\"}\n"));
    gpt2_free(m);
    gpt2_free(other);
}
END_TEST

/* The faults of each tensor of an adapter's file. */
enum { RIGHT, MISSING, TURNED, BARE, HALF, INTEGER };

static void build_added(const int how[ADDED], const char *extra) {
    Build b = {0};
    for (int i = 0; i < ADDED; i++) {
        unsigned char data[8 * 6 * C];
        char name[96], shape[64];
        size_t n = added[i].n;
        if (how[i] == MISSING) continue;
        for (size_t k = 0; k < n; k++) {
            float x = added_value(i, (int)k);
            uint32_t bits;
            memcpy(&bits, &x, 4);
            uint16_t half = (uint16_t)((bits >> 13) - ((127u - 15u) << 10));
            if (how[i] == HALF)
                memcpy(data + 2 * k, &half, 2);
            else
                memcpy(data + 4 * k, &x, 4);
        }
        const char *cut = strstr(added[i].name, "transformer.");
        snprintf(name, sizeof name, "%.*s%s", (int)(cut - added[i].name), added[i].name,
                 how[i] == BARE ? cut + 12 : cut);
        if (added[i].ndim == 1)
            snprintf(shape, sizeof shape, "[%d]", added[i].shape[0]);
        else if (how[i] == TURNED)
            snprintf(shape, sizeof shape, "[%d,%d]", added[i].shape[1], added[i].shape[0]);
        else
            snprintf(shape, sizeof shape, "[%d,%d]", added[i].shape[0], added[i].shape[1]);
        build_add(&b, name,
                  how[i] == HALF      ? "F16"
                  : how[i] == INTEGER ? "I32"
                                      : "F32",
                  shape, data, (how[i] == HALF ? 2 : 4) * n);
    }
    if (extra) build_add(&b, extra, "F32", "[1]", &(float){0}, 4);
    build_end(&b, "w.safetensors", 1);
}

START_TEST(loads_an_adapter_strictly) {
    build_directory(&(Style){0});
    Error e;
    GPT2 *m = with_added();
    const struct {
        int how[ADDED];
        const char *extra, *says[3];
    } bad[] = {
        {{RIGHT, MISSING, RIGHT},
         NULL,
         {"c_attn.lora_B.weight is missing", "[18,2]", "w.safetensors"}},
        {{RIGHT, TURNED, RIGHT}, NULL, {"c_attn.lora_B.weight", "[2,18]", "[18,2]"}},
        {{RIGHT, RIGHT, INTEGER}, NULL, {"adapter_up.bias", "I32", "F32, F16, BF16 or F64"}},
        {{RIGHT, RIGHT, RIGHT},
         "base_model.model.lm_head.lora_A.weight",
         {"lm_head.lora_A.weight is not one of the 3", "c_attn.lora_A", ""}},
        {{BARE, BARE, RIGHT}, NULL, {"adapter_up.bias is missing", "", ""}},  // all of them or none
        {{RIGHT, BARE, RIGHT}, NULL, {"c_attn.lora_A.weight is missing", "", ""}},
    };
    ck_assert_int_eq(C, 6);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        build_added(bad[i].how, bad[i].extra);
        ck_assert_msg(hf_load_added(m, here, "w.safetensors", &e) == -1, "case %zu", i);
        ck_says(&e, "w.safetensors", bad[i].says[0], bad[i].says[1], bad[i].says[2], NULL);
        ck_added(m, false);
    }
    ck_assert_int_eq(hf_load_added(m, here, "none.safetensors", &e), -1);
    put_text("adapter_model.bin", "x");
    ck_assert_int_eq(hf_load_added(m, here, "adapter_model.safetensors", &e), -1);
    ck_says(&e, "adapter_model.bin has 1 bytes", "neither container of torch.save", NULL);
    static const int good[][ADDED] = {
        {RIGHT, RIGHT, RIGHT}, {BARE, BARE, BARE}, {HALF, RIGHT, HALF}};
    for (int i = 0; i < 3; i++) {
        GPT2 *fresh = with_added();
        build_added(good[i], NULL);
        ck_assert_msg(!hf_load_added(fresh, here, "w.safetensors", &e), "%s", e.text);
        ck_added(fresh, true);
        gpt2_free(fresh);
    }
    gpt2_free(m);
}
END_TEST

/* The pickles of older versions: what torch.save wrote for {"w": [[0.5, -2]], "h": [0.25]}. */
START_TEST(loads_the_pickles_of_older_versions) {
    static const GPT2Tensor two[] = {{"w", 2, {1, 2}, 2, false}, {"h", 1, {1, 1}, 1, false}};
    static const char *const names[][2] = {{"adapter_model.safetensors", "adapter_model.bin"},
                                           {"adapter.safetensors", "pytorch_adapter.bin"}};
    Error e;
    for (int i = 0; i < 4; i++) {
        build_directory(&(Style){0});
        GPT2 *m = ck_load(here, true);
        gpt2_reserve(m, &(GPT2Limits){.tokens = 1, .sequences = 1, .more = two, .more_n = 2});
        put(names[i % 2][1], golden_files[2 + i / 2].bytes, golden_files[2 + i / 2].n);
        ck_assert_msg(!hf_load_added(m, here, names[i % 2][0], &e), "%s", e.text);
        float x[3];
        gpt2_read(m, TENSORS, GPT2_WEIGHT, 0, 2, x);
        gpt2_read(m, TENSORS + 1, GPT2_WEIGHT, 0, 1, x + 2);
        ck_assert(x[0] == 0.5f && x[1] == -2 && x[2] == 0.25f);
        gpt2_free(m);
        ck_assert_int_eq(unlink(in(names[i % 2][1])), 0);
    }
}
END_TEST

/* An adapter may bring its base's embedding or head, and AdapterHub writes a head into a file of
   its own. Equal ones change nothing; others would, so they are refused by name. */
START_TEST(embeddings_and_heads_of_an_adapter) {
    static const struct {
        const char *file, *name, *shape;
        bool differs;
        const char *says[2];
    } row[] = {
        {"model_head.safetensors", "lm_head.weight", "[11,6]", false, {NULL}},
        {"model_head.safetensors",
         "lm_head.weight",
         "[11,6]",
         true,
         {"model_head.safetensors: tensor lm_head.weight is another", "trained"}},
        {"model_head.safetensors",
         "heads.default.3.weight",
         "[11,6]",
         false,
         {"trained head (tensor heads.default.3.weight)", "with_head=False"}},
        {"w.safetensors", "base_model.model.lm_head.weight", "[11,6]", false, {NULL}},
        {"w.safetensors",
         "base_model.model.transformer.wte.weight",
         "[11,6]",
         true,
         {"wte.weight is another", "w.safetensors"}},
        {"w.safetensors",
         "base_model.model.lm_head.weight",
         "[13,6]",
         false,
         {"embeddings of 13 tokens", "resize_token_embeddings(13)"}},
    };
    Error e;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        Build b = {0};
        float x[13 * C];
        const int rows = row[i].shape[2] == '3' ? 13 : V;
        build_directory(&(Style){0});
        GPT2 *m = ck_load(here, true);
        static const GPT2Tensor one[] = {{"h", 1, {1, 1}, 1, false}};
        gpt2_reserve(m, &(GPT2Limits){.tokens = 1, .sequences = 1, .more = one, .more_n = 1});
        for (int k = 0; k < rows * C; k++) x[k] = value(0, k);
        if (row[i].differs) x[C] += 0.5f;
        const bool apart = strcmp(row[i].file, "w.safetensors") != 0;
        build_add(&b, row[i].name, "F32", row[i].shape, x, 4 * (size_t)(rows * C));
        if (!apart) build_add(&b, "h", "F32", "[1]", x, 4);
        build_end(&b, row[i].file, 0);
        if (apart) {
            Build own = {0};
            build_add(&own, "h", "F32", "[1]", x, 4);
            build_end(&own, "w.safetensors", 0);
        }
        const int status = hf_load_added(m, here, "w.safetensors", &e);
        ck_assert_msg((status == 0) == (row[i].says[0] == NULL), "%zu: %s", i, e.text);
        if (status) ck_says(&e, row[i].says[0], row[i].says[1], NULL);
        gpt2_free(m);
        unlink(in("model_head.safetensors"));
    }
}
END_TEST

START_TEST(an_adapter_with_a_name_is_below) {
    LoraConfig lora;
    Error e;
    ck_assert_int_eq(mkdir(in("named"), 0777) | mkdir(in("named/mine"), 0777), 0);
    ck_assert_int_eq(hf_lora_config(in("named"), &lora, &e), -1);
    ck_says(&e, "cannot open", "named/adapter_config.json", NULL);
    put_text("named/mine/adapter_config.json", "{}");
    ck_assert_int_eq(hf_lora_config(in("named"), &lora, &e), -1);
    ck_says(&e, "give ", "named/mine", NULL);
    put_text("named/mine/config.json", "{}");
    ck_assert_int_eq(unlink(in("named/mine/adapter_config.json")), 0);
    ck_assert_int_eq(hf_lora_config(in("named/mine"), &lora, &e), -1);
    ck_says(&e, "holds a model, not an adapter", NULL);
}
END_TEST

/* Which library wrote here/adapter_config.json. 0, or -1 with e filled. */
static int format_of(AdapterFormat *format, Error *e) {
    char *path;
    json_t *config = read_adapter_config(here, &path, format, e);
    free(path);
    if (!config) return -1;
    json_decref(config);
    return 0;
}

START_TEST(tells_whose_adapter_it_is) {
    Error e;
    AdapterFormat format;
    ck_assert_int_eq(format_of(&format, &e), -1);
    ck_says(&e, "adapter_config.json", NULL);
    put_text("adapter_config.json",
             "{\"peft_type\": \"IA3\", \"config\": {}, \"version\": \"adapters.1.2.0\"}");
    ck_assert(!format_of(&format, &e) && format == ADAPTER_PEFT);
    put_text("adapter_config.json",
             "{\"config\": {\"reduction_factor\": 16}, \"version\": \"adapters.1.2.0\"}");
    ck_assert(!format_of(&format, &e) && format == ADAPTER_HUB);
    LoraConfig l;
    ck_assert_int_eq(hf_lora_config(here, &l, &e), -1);
    ck_says(&e, "adapter_config.json", "AdapterHub", "./adapter", NULL);
    const char *neither[] = {"{}",
                             "{\"config\": {}}",
                             "{\"version\": \"adapters.1\"}",
                             "{\"config\": 1, \"version\": \"adapters.1\"}",
                             "[]",
                             "{\"config\": {}, \"version\": \"1.2\"}",
                             "{",
                             ""};
    for (size_t i = 0; i < sizeof neither / sizeof *neither; i++) {
        put_text("adapter_config.json", neither[i]);
        ck_assert_msg(format_of(&format, &e) == -1, "%s", neither[i]);
        ck_says(&e, "adapter_config.json", NULL);
    }
}
END_TEST

/* Every key that PEFT 0.20 writes, with the values it has for a plain LoRA. */
static const char peft_config[] =
    "{\"alora_invocation_tokens\": null, \"alpha_pattern\": {}, \"arrow_config\": null, "
    "\"auto_mapping\": null, "
    "\"base_model_name_or_path\": \"openai-community/gpt2\", \"bias\": \"none\", \"corda_config\": "
    "null, \"ensure_weight_tying\": false, "
    "\"eva_config\": null, \"exclude_modules\": null, \"fan_in_fan_out\": true, "
    "\"inference_mode\": true, \"init_lora_weights\": true, "
    "\"kasa_config\": null, \"layer_replication\": null, \"layers_pattern\": null, "
    "\"layers_to_transform\": null, \"loftq_config\": {}, "
    "\"lora_alpha\": 32, \"lora_bias\": false, \"lora_dropout\": 0.05, \"lora_ga_config\": null, "
    "\"megatron_config\": null, "
    "\"megatron_core\": \"megatron.core\", \"modules_to_save\": null, \"peft_type\": \"LORA\", "
    "\"peft_version\": \"0.20.1.dev0\", "
    "\"qalora_group_size\": 16, \"r\": 8, \"rank_pattern\": {}, \"revision\": null, "
    "\"target_modules\": [\"c_proj\", \"c_attn\"], "
    "\"target_parameters\": null, \"task_type\": \"CAUSAL_LM\", \"trainable_token_indices\": null, "
    "\"use_dora\": false, \"use_qalora\": false, "
    "\"use_rslora\": false%s}";

static void put_lora(const char *more) {
    Str s = {0};
    char old[64] = "";
    str_printf(&s, peft_config, "");
    // a repeated key replaces its value
    sscanf(more, "%63[^:]", old);
    char *at = *old ? strstr(s.s, old) : NULL;
    if (at) {
        char *end = at + strlen(old);
        int depth = 0;
        while (*end && (depth || (*end != ',' && *end != '}'))) {
            depth += (*end == '{') + (*end == '[') - (*end == '}') - (*end == ']');
            end++;
        }
        memmove(at, *end == ',' ? end + 2 : end, strlen(*end == ',' ? end + 2 : end) + 1);
        size_t n = strlen(s.s);
        if (s.s[n - 2] == ' ') memcpy(s.s + n - 3, "}", 2);  // the last key
    }
    s.n = strlen(s.s);
    s.s[--s.n] = 0;
    if (*more) str_printf(&s, ", %s", more);
    str_printf(&s, "}");
    put("adapter_config.json", s.s, s.n);
    free(s.s);
}

START_TEST(reads_and_writes_the_config_of_a_lora) {
    Error e;
    LoraConfig l;
    put_lora("");
    ck_assert_msg(!hf_lora_config(here, &l, &e), "%s", e.text);
    ck_assert(l.r == 8 && l.alpha == 32 && l.dropout == 0.05f && !l.rslora);
    ck_assert_str_eq(l.targets, "c_proj,c_attn");
    put_lora("\"use_rslora\": true");
    ck_assert(!hf_lora_config(here, &l, &e) && l.rslora);
    put_lora("\"target_modules\": \"all-linear\"");
    ck_assert(!hf_lora_config(here, &l, &e) && !strcmp(l.targets, "all-linear"));
    put_text(
        "adapter_config.json",
        "{\"peft_type\": \"LORA\", \"r\": 4, \"target_modules\": [\"c_attn\"]}");  // PEFT 0.3 and
                                                                                   // its defaults
    ck_assert_msg(!hf_lora_config(here, &l, &e), "%s", e.text);
    ck_assert(l.r == 4 && l.alpha == 8 && l.dropout == 0 && !l.rslora);

    l = (LoraConfig){16, 32, 0.1f, false, "mlp.c_fc,c_attn"};
    char *written = hf_lora_text(&l, "openai-community/gpt2");
    ck_assert_str_eq(written,
                     "{\n  \"auto_mapping\": null,\n  \"base_model_name_or_path\": "
                     "\"openai-community/gpt2\",\n  \"bias\": \"none\",\n"
                     "  \"fan_in_fan_out\": true,\n  \"inference_mode\": true,\n  "
                     "\"init_lora_weights\": true,\n  \"layers_pattern\": null,\n"
                     "  \"layers_to_transform\": null,\n  \"lora_alpha\": 32,\n  \"lora_dropout\": "
                     "0.1,\n  \"modules_to_save\": null,\n"
                     "  \"peft_type\": \"LORA\",\n  \"r\": 16,\n  \"revision\": null,\n  "
                     "\"target_modules\": [\n    \"c_attn\",\n    \"mlp.c_fc\"\n"
                     "  ],\n  \"task_type\": \"CAUSAL_LM\"\n}");
    free(written);
    l = (LoraConfig){3, 4.5f, 0, true, "all-linear"};
    written = hf_lora_text(&l, NULL);
    put_text("adapter_config.json", written);
    free(written);
    LoraConfig back;
    ck_assert_msg(!hf_lora_config(here, &back, &e), "%s", e.text);
    ck_assert(back.r == 3 && back.alpha == 4.5f && back.dropout == 0 && back.rslora &&
              !strcmp(back.targets, "all-linear"));
}
END_TEST

START_TEST(refuses_what_is_more_than_a_lora) {
    Error e;
    LoraConfig l;
    const char *bad[][2] = {
        {"\"use_dora\": true", "use_dora is true"},
        {"\"lora_bias\": true", "lora_bias"},
        {"\"rank_pattern\": {\"c_attn\": 4}", "rank_pattern"},
        {"\"alpha_pattern\": {\"c_attn\": 4}", "alpha_pattern"},
        {"\"modules_to_save\": [\"score\"]", "modules_to_save"},
        {"\"bias\": \"all\"", "bias"},
        {"\"bias\": \"lora_only\"", "bias"},
        {"\"layers_to_transform\": [0]", "layers_to_transform"},
        {"\"exclude_modules\": [\"c_fc\"]", "exclude_modules"},
        {"\"peft_type\": \"IA3\"", "peft_type"},
        {"\"peft_type\": 3", "peft_type"},
        {"\"task_type\": \"SEQ_CLS\"", "task_type"},
        {"\"init_lora_weights\": \"pissa\"", "init_lora_weights"},
        {"\"init_lora_weights\": \"olora\"", "init_lora_weights"},
        {"\"target_parameters\": [\"x\"]", "target_parameters"},
        {"\"tomorrows_config\": {\"x\": 1}", "tomorrows_config"},
        {"\"r\": 0", "r is 0"},
        {"\"r\": -4", "r is -4"},
        {"\"r\": 1.5", "r is 1.5"},
        {"\"r\": \"8\"", "r is"},
        {"\"r\": 99999999999", "r is"},
        {"\"lora_alpha\": \"8\"", "lora_alpha"},
        {"\"lora_dropout\": 1", "lora_dropout"},
        {"\"lora_dropout\": -0.1", "lora_dropout"},
        {"\"use_rslora\": 1", "use_rslora"},
        {"\"target_modules\": \".*c_attn\"", "target_modules"},
        {"\"target_modules\": []", "target_modules"},
        {"\"target_modules\": null", "target_modules"},
        {"\"target_modules\": [1]", "target_modules"},
        {"\"target_modules\": [\"a,b\"]", "target_modules"},
        {"\"target_modules\": [\"\"]", "target_modules"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_lora(bad[i][0]);
        ck_assert_msg(hf_lora_config(here, &l, &e) == -1, "accepted: %s", bad[i][0]);
        ck_says(&e, "adapter_config.json", bad[i][1], NULL);
    }
    Str long_name = {0};
    str_printf(&long_name, "\"target_modules\": [\"%0*d\"]", 1100, 0);
    put_lora(long_name.s);
    ck_assert_int_eq(hf_lora_config(here, &l, &e), -1);
    ck_says(&e, "target_modules", "characters", NULL);
    free(long_name.s);
}
END_TEST

/* ---- Suite ----------------------------------------------------------------------------------- */

int main(void) {
    Suite *suite = suite_create("peft");
    TCase *tc = tcase_create("peft");
    tcase_set_timeout(tc, 300);  // for sanitizers and busy machines
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, saves_and_loads_what_a_technique_added);
    tcase_add_test(tc, loads_an_adapter_strictly);
    tcase_add_test(tc, loads_the_pickles_of_older_versions);
    tcase_add_test(tc, embeddings_and_heads_of_an_adapter);
    tcase_add_test(tc, an_adapter_with_a_name_is_below);
    tcase_add_test(tc, tells_whose_adapter_it_is);
    tcase_add_test(tc, reads_and_writes_the_config_of_a_lora);
    tcase_add_test(tc, refuses_what_is_more_than_a_lora);
    suite_add_tcase(suite, tc);
    int failed = run_suite(suite);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
