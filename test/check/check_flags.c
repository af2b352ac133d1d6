/*
 * check_flags.c - the table of flags: values, defaults and which line overrides which, refusals,
 * --help, and the echo that repeats a run.
 *
 * Most tests read the flags that every run has, together with some of the tests' own.
 */
#include "run/flags.h"
#include "run/private.h"  // the table of a run

#include "run_files.h"

#include <limits.h>

static Run parsed;
static int own_length, own_count;
static bool own_switch;
static enum { RED, GREEN, BLUE_ISH } own_kind;
static const char *own_text, *own_question;
static float own_any, own_odds;

static float own_share;

static const Flag own_flags[] = {
    TITLE("Own flags"),
    {"max_length", NUMBER(own_length, "512", 1, 1024), "The length, in tokens."},
    {"train_on_prompt", SWITCH(own_switch, "false"), "A switch."},
    {"kind", CHOICE(own_kind, "red", "red|green|blue-ish"), "The colour."},
    {"text", TEXT(own_text, NULL), "A text that a checkpoint records."},
    {"any", NUMBER(own_any, "0", 0, 0), "Any number."},
    {"count", NUMBER(own_count, "0", 0, 0), "Any whole number."},
    {"question", TEXT(own_question, NULL), "A text that excludes some other flags.",
     .conflicts = "data dry_run train_on_prompt model_x", .may_be_empty = true},
    {"odds", NUMBER(own_odds, "0.5", 0, 1), "A number that some other flags use.",
     .only_with = "question train_on_prompt count"},
    {"share", NUMBER(own_share, "0.5", 0, 1), "A number that one kind uses.",
     .only_with = "kind=green kind=blue-ish"},
    {0},
};

static const Program program = {
    .name = "prog", .about = "A toy.", .flags = own_flags, .without = "eval_steps adam_epsilon"};

/* Splits words at blanks. "_" is an empty argument. */
static int parse_words(const char *words, Error *e) {
    static Words w;
    split_words(&w, "prog", words);
    return run_parse(&parsed, &program, w.argc, w.argv, e);
}

static void accept(const char *words) {
    Error e;
    if (parse_words(words, &e)) ck_abort_msg("%s: refused: %s", words, e.text);
}

/* ---- values ---------------------------------------------------------------------------------- */

START_TEST(test_accepts) {
    accept("");
    ck_assert_int_eq(parsed.per_device_train_batch_size, 4);
    ck_assert_int_eq(parsed.gradient_accumulation_steps, 2);
    ck_assert_float_eq(parsed.num_train_epochs, 3);
    ck_assert_float_eq(parsed.learning_rate, 5e-5f);
    ck_assert_int_eq(parsed.warmup_steps, 100);
    ck_assert_float_eq(parsed.weight_decay, 0.01f);
    ck_assert_int_eq(parsed.max_steps, -1);
    ck_assert_int_eq(parsed.lr_scheduler_type, LINEAR);
    ck_assert_ptr_null(parsed.output);

    accept(
        "--learning_rate 1e-4 --max-steps=7 --per-device_train-batch_size 3 --seed "
        "9007199254740993 --output=out --kind "
        "blue-ish");
    ck_assert_float_eq(parsed.learning_rate, 1e-4f);
    ck_assert_int_eq(parsed.max_steps, 7);
    ck_assert_int_eq(parsed.per_device_train_batch_size, 3);
    ck_assert(parsed.seed == 9007199254740993);  // 2^53 + 1: not through a double
    ck_assert_str_eq(parsed.output, "out");
    ck_assert_int_eq(own_kind, BLUE_ISH);

    accept("--max_steps -1 --any -2.5e-3 --max_length 1024 --max_grad_norm 1e6 --adam_beta1 0");
    ck_assert_int_eq(parsed.max_steps, -1);
    ck_assert_float_eq(own_any, -2.5e-3f);
    ck_assert_int_eq(own_length, 1024);
    accept("--seed 1 --seed 2 --seed=3");  // the last counts
    ck_assert(parsed.seed == 3);
    accept("--model a-b --question _");
    ck_assert_str_eq(parsed.model, "a-b");
    ck_assert_str_eq(own_question, "");
    accept("--count -2147483648");
    ck_assert_int_eq(own_count, INT_MIN);
    accept("--text=--odd=text");
    ck_assert_str_eq(own_text, "--odd=text");
}
END_TEST

/* Flags that a program does not have keep their defaults, even after a run that had them. */
START_TEST(test_flags_left_out) {
    parsed.adam_epsilon = 1;
    parsed.eval_steps = 5;
    accept("");
    ck_assert_float_eq(parsed.adam_epsilon, 1e-8f);
    ck_assert_int_eq(parsed.eval_steps, 0);
    ck_assert(!run_given(&parsed, "adam_epsilon"));
}
END_TEST

START_TEST(test_switches) {
    const struct {
        const char *words;
        bool expected;
    } row[] = {
        {"--train_on_prompt", true},          {"--train-on-prompt", true},
        {"--train_on_prompt=true", true},     {"--train_on_prompt True", true},
        {"--train_on_prompt=false", false},   {"--train_on_prompt False", false},
        {"--no_train_on_prompt", false},      {"--no-train-on-prompt", false},
        {"--train_on_prompt --seed 5", true}, {"--train_on_prompt --no_train_on_prompt", false}};
    for (int i = 0; i < COUNT(row); i++) {
        accept(row[i].words);
        ck_assert_msg(own_switch == row[i].expected, "%s", row[i].words);
    }
}
END_TEST

START_TEST(test_choices_are_enums) {
    const char *const names[] = {"red", "green", "blue-ish"};
    for (unsigned i = 0; i < 3; i++) {
        char words[64], text[64];
        snprintf(words, sizeof words, "--kind %s", names[i]);
        accept(words);
        ck_assert_uint_eq(own_kind, i);
        const Flag kind = {
            .type = FLAG_CHOICE, .value = &own_kind, .choices = own_flags[3].choices};
        ck_assert_str_eq(flag_text(&kind, text), names[i]);
    }
    const char *const schedules[] = {"constant", "constant_with_warmup", "linear", "cosine"};
    const unsigned expected[] = {CONSTANT, CONSTANT_WITH_WARMUP, LINEAR, COSINE};
    for (int i = 0; i < 4; i++) {
        char words[64];
        snprintf(words, sizeof words, "--lr_scheduler_type=%s", schedules[i]);
        accept(words);
        ck_assert_uint_eq(parsed.lr_scheduler_type, expected[i]);
    }
}
END_TEST

START_TEST(test_bare_value) {
    accept("--resume");
    ck_assert_str_eq(parsed.resume, "latest");
    accept("--resume --seed 5");
    ck_assert_str_eq(parsed.resume, "latest");
    ck_assert(parsed.seed == 5);
    accept("--resume out/checkpoint-5");
    ck_assert_str_eq(parsed.resume, "out/checkpoint-5");
    accept("--resume=here");
    ck_assert_str_eq(parsed.resume, "here");
    accept("");
    ck_assert_ptr_null(parsed.resume);
}
END_TEST

START_TEST(test_refuses) {
    const struct {
        const char *words, *says[3];
    } row[] = {
        {"--learning_rate 5e-5x", {"--learning_rate", "5e-5x", "from 0 to 10"}},
        {"--output _", {"--output is empty", "a variable of the shell is not set"}},
        {"--data=", {"--data is empty"}},
        {"--no_train_on_prompt=true",
         {"--no_train_on_prompt takes no value", "--train_on_prompt true"}},
        {"--lr 1", {"did you mean --learning_rate?"}},
        {"--learning_rate _", {"--learning_rate \"\"", "a number from 0 to 10"}},
        {"--learning_rate nan", {"--learning_rate", "nan", "not understood"}},
        {"--learning_rate inf", {"--learning_rate", "inf", "not understood"}},
        {"--learning_rate 0x1p-3", {"0x1p-3", "not understood"}},
        {"--learning_rate -1", {"--learning_rate", "-1", "out of range"}},
        {"--learning_rate 11", {"11", "out of range", "from 0 to 10"}},
        {"--learning_rate 1e-60", {"1e-60", "out of range"}},
        {"--learning_rate 1e999", {"1e999"}},
        {"--learning_rate 1.0.0", {"1.0.0", "not understood"}},
        {"--count 2147483648", {"2147483648", "out of range", "a whole number"}},
        {"--any 1e39", {"1e39", "out of range"}},
        {"--learning_rate", {"--learning_rate has no value", "a number"}},
        {"--learning_rate --seed 3", {"--learning_rate has no value"}},
        {"--learning_rate=", {"--learning_rate \"\""}},
        {"--max_length 1.5", {"--max_length", "1.5", "a whole number from 1 to 1024"}},
        {"--max_length 12a", {"12a", "not understood"}},
        {"--max_length 0x10", {"0x10", "not understood"}},
        {"--max_length 1e2", {"1e2", "a whole number"}},
        {"--max_length 0", {"--max_length \"0\" is out of range", "from 1 to 1024"}},
        {"--max_length 1025", {"1025", "out of range"}},
        {"--max_length 4294967297", {"4294967297", "out of range"}},
        {"--max_length 99999999999999999999", {"99999999999999999999"}},
        {"--seed -1", {"--seed", "-1", "0 or more"}},
        {"--seed 9223372036854775808", {"9223372036854775808"}},
        {"--lr_scheduler_type cosin",
         {"cosin", "one of constant|constant_with_warmup|linear|cosine"}},
        {"--lr_scheduler_type constant|linear", {"constant|linear"}},
        {"--lr_scheduler_type how", {"\"how\""}},
        {"--kind _", {"--kind \"\"", "red|green|blue-ish"}},
        {"--train_on_prompt=maybe", {"--train_on_prompt", "maybe", "true or false"}},
        {"--train_on_prompt maybe", {"unexpected argument \"maybe\""}},
        {"--no_train_on_prompt=true", {"--no_train_on_prompt"}},
        {"--no_seed", {"there is no flag --no_seed"}},
        {"--learnin_rate 1", {"no flag --learnin_rate", "did you mean --learning_rate?"}},
        {"--warmup-step 1", {"no flag --warmup-step", "did you mean --warmup_steps?"}},
        {"--output_path x", {"did you mean --output?"}},
        {"--lr 1e-4", {"there is no flag --lr; did you mean --learning_rate?"}},
        {"--batch_size 8", {"did you mean --per_device_train_batch_size?"}},
        {"--max_len 8", {"did you mean --max_length?"}},
        {"--eval_steps 5", {"no flag --eval_steps"}},  // the table is without it
        {"--adam_epsilon 1e-5", {"no flag --adam_epsilon"}},
        {"data.jsonl", {"unexpected argument \"data.jsonl\"", "--name value"}},
        {"--seed 1 2", {"unexpected argument \"2\""}},
        {"-seed 1", {"unexpected argument \"-seed\""}},
        {"--", {"unexpected argument \"--\""}},
        {"--=3", {"no flag --=3"}},
        {"--warmup_steps 5 --warmup_ratio 0.1",
         {"--warmup_steps 5", "--warmup_ratio 0.1", "one of them"}},
        {"--question why --data x", {"--question and --data are both given", "one of them"}},
        {"--data x --question why", {"--question and --data are both given", "one of them"}},
        {"--question why --seed 3 --train_on_prompt",
         {"--question and --train_on_prompt are both given"}},
        {"--text a\xff", {"--text", "UTF-8"}},
        {"--text \xed\xa0\x80", {"--text", "UTF-8"}},      // a surrogate
        {"--text \xc0\x80", {"--text", "UTF-8"}},          // an overlong form
        {"--text \xf4\x90\x80\x80", {"--text", "UTF-8"}},  // beyond U+10FFFF
        {"--text \xea\xb0", {"--text", "UTF-8"}},          // cut short
    };
    for (int i = 0; i < COUNT(row); i++) {
        Error e = {0};
        ck_assert_msg(parse_words(row[i].words, &e) == -1, "accepted: %s", row[i].words);
        for (int j = 0; j < 3 && row[i].says[j]; j++)
            ck_assert_msg(strstr(e.text, row[i].says[j]) != NULL, "%s: expected \"%s\" in \"%s\"",
                          row[i].words, row[i].says[j], e.text);
    }
    accept("--text \xea\xb0\x80\xf0\x9f\x98\x80");  // Hangul and an emoji
    accept("--model a\xff");                        // a path is bytes
    // an empty text and a switch that is off conflict with nothing; nor does --model, whose name
    // only begins like that of a flag in the list
    accept("--question why --no_train_on_prompt --dry_run=false --model x");
    accept("--question _ --data y");
}
END_TEST

START_TEST(test_no_bad_advice) {
    Error e;
    ck_assert_int_eq(parse_words("--zzzzqqqq 1", &e), -1);
    ck_assert_ptr_null(strstr(e.text, "did you mean"));  // nothing is near
    ck_assert_int_eq(parse_words("--no_", &e), -1);
    ck_assert_ptr_null(strstr(e.text, "did you mean"));
    ck_assert_int_eq(parse_words("--=3", &e), -1);
    ck_assert_ptr_null(strstr(e.text, "did you mean"));
    char longest[1000] = "--";
    memset(longest + 2, 'a', 900);
    ck_assert_int_eq(parse_words(longest, &e), -1);
}
END_TEST

START_TEST(test_names_of_other_libraries) {
    accept(
        "--output_dir here --model-name-or-path there --train_file=a.jsonl --validation_file "
        "b.jsonl --resume_from_checkpoint");
    ck_assert_str_eq(parsed.output, "here");
    ck_assert_str_eq(parsed.model, "there");
    ck_assert_str_eq(parsed.data, "a.jsonl");
    ck_assert_str_eq(parsed.eval, "b.jsonl");
    ck_assert_str_eq(parsed.resume, "latest");
    // what happens anyway
    accept(
        "--report_to none --evaluation_strategy no --eval-strategy=steps --bias none --task_type "
        "CAUSAL_LM --bnb_4bit_quant_type nf4 --fp16 False --optim adamw_torch --do_train "
        "--no_push_to_hub --no_cuda --packing False --num_beams 1 --seed 7");
    ck_assert(parsed.seed == 7 && !parsed.fp16);
    static const struct {
        const char *words, *says[2];
    } refused[] = {
        {"--report_to wandb", {"--report_to wandb has no counterpart here", "log.jsonl"}},
        {"--optim adafactor", {"adafactor", "the optimiser is AdamW"}},
        {"--device_map cuda:0", {"--device_map cuda:0", "the one GPU"}},
        {"--torch_dtype float16", {"float16 has no counterpart", "--bf16"}},
        {"--packing", {"--packing true", "nothing is padded"}},
        {"--num_beams=4", {"--num_beams 4", "sampled"}},
        {"--logging_dir x", {"--logging_dir has no counterpart here", "make plots"}},
        {"--hub_model_id x", {"--hub_model_id has no counterpart here"}},
        {"--data_seed 3", {"--seed is the seed of everything"}},
        {"--dataloader_num_workers 4", {"stay in memory"}},
        {"--lora_r 8", {"there is no flag --lora_r"}},  // of lora.c alone
    };
    for (int i = 0; i < COUNT(refused); i++) {
        Error e = {0};
        ck_assert_msg(parse_words(refused[i].words, &e) == -1, "%s", refused[i].words);
        for (int j = 0; j < 2 && refused[i].says[j]; j++)
            ck_assert_msg(strstr(e.text, refused[i].says[j]) != NULL, "%s: %s", refused[i].words,
                          e.text);
        ck_assert_msg(!strstr(e.text, "did you mean"), "%s", e.text);
    }
}
END_TEST

/* A flag that asks for something else than training excludes the flags of training. Numbers that
   ask for nothing are never refused. */
START_TEST(test_flags_without_effect) {
    static const char *const refused[][2] = {
        {"--num_train_epochs 2 --max_steps 5", "--max_steps and --num_train_epochs are both given"},
        {"--warmup_steps 5 --lr_scheduler_type constant", "--warmup_steps has no effect without"},
        {"--save_steps 5", "--save_steps has no effect without --output"},
        {"--save_total_limit 5", "--save_total_limit has no effect without --output"},
        {"--overwrite_output_dir", "--overwrite_output_dir has no effect without --output"},
    };
    for (int i = 0; i < COUNT(refused); i++) {
        Error e = {0};
        ck_assert_msg(parse_words(refused[i][0], &e) == -1, "%s", refused[i][0]);
        ck_assert_msg(strstr(e.text, refused[i][1]) != NULL, "%s: %s", refused[i][0], e.text);
    }
    accept("--num_train_epochs 2 --max_steps -1");
    accept("--num_train_epochs 3 --max_steps 5");  // 3 is the default
    accept("--warmup_steps 0 --lr_scheduler_type constant");
    accept("--save_steps 0 --save_total_limit 0");
    const Flag rows[] = {{"ask", TEXT(own_text, NULL), "A question.", .uses = "model seed"}, {0}};
    const Program asks = {.name = "prog", .flags = rows};
    Error e;
    Words w;
    split_words(&w, "prog", "--ask why --model m --seed 3 --eval_steps 0");
    ck_assert_int_eq(run_parse(&parsed, &asks, w.argc, w.argv, &e), 0);
    split_words(&w, "prog", "--ask why --learning_rate 1e-4");
    ck_assert_int_eq(run_parse(&parsed, &asks, w.argc, w.argv, &e), -1);
    ck_assert_str_eq(e.text, "--learning_rate has no effect with --ask");
}
END_TEST

START_TEST(test_several_files) {
    accept("--data a.jsonl b.jsonl c.jsonl --seed 5");
    ck_assert_str_eq(parsed.data, "a.jsonl,b.jsonl,c.jsonl");
    accept("--data=a.jsonl,b.jsonl");
    ck_assert_str_eq(parsed.data, "a.jsonl,b.jsonl");
    Error e;
    ck_assert_int_eq(parse_words("--model a b", &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "unexpected argument \"b\""));
}
END_TEST

/* A flag that has no effect without another one is refused, unless that one is set: on the command
   line or by the program itself. */
START_TEST(test_only_with) {
    Error e;
    ck_assert_int_eq(parse_words("--odds 0.1", &e), -1);
    ck_assert_str_eq(e.text,
                     "--odds has no effect without --question or --train_on_prompt or --count");
    ck_assert_int_eq(parse_words("--odds 0.1 --no_train_on_prompt --question _", &e), -1);
    accept("--odds 0.1 --question why");
    accept("--train_on_prompt --odds 0.1");
    accept("--odds 0.1 --count 0");  // a number counts when it is given
    ck_assert_float_eq(own_odds, 0.1f);
    accept("");                                            // the default of the row is not given
    ck_assert_int_eq(parse_words("--share 0.1", &e), -1);  // the kind is red
    ck_assert_str_eq(e.text, "--share has no effect without --kind=green or --kind=blue-ish");
    ck_assert_int_eq(parse_words("--share 0.1 --kind red", &e), -1);
    accept("--share 0.1 --kind green");
    accept("--kind blue-ish --share 0.1");

    const Program other = {
        .name = "prog", .flags = own_flags, .lines.program = COMMAND_LINE("--train_on_prompt")};
    Words w;
    split_words(&w, "prog", "--odds 0.2");
    ck_assert_int_eq(run_parse(&parsed, &other, w.argc, w.argv, &e), 0);
    split_words(&w, "prog", "--odds 0.2 --no_train_on_prompt");
    ck_assert_int_eq(run_parse(&parsed, &other, w.argc, w.argv, &e), -1);
    // a switch that the program turns on excludes other flags as if it were given
    const Flag pair[] = {{"one", SWITCH(own_switch, "false"), "A switch.", .conflicts = "two"},
                         {"two", NUMBER(own_count, "0", 0, 0), "A number."},
                         {0}};
    const Program on = {.name = "prog", .flags = pair, .lines.program = COMMAND_LINE("--one")};
    split_words(&w, "prog", "--two 2");
    ck_assert_int_eq(run_parse(&parsed, &on, w.argc, w.argv, &e), -1);
    ck_assert_str_eq(e.text, "--one is on, and --two has no effect with it");
    split_words(&w, "prog", "--two 2 --no_one");
    ck_assert_int_eq(run_parse(&parsed, &on, w.argc, w.argv, &e), 0);
}
END_TEST

START_TEST(test_warmup_ratio_replaces_steps) {
    accept("--warmup_ratio 0.1 --warmup_steps 0");
    ck_assert_float_eq(parsed.warmup_ratio, 0.1f);
    accept("--warmup_ratio 0.1");
    ck_assert_int_eq(parsed.warmup_steps, 0);
    accept("--warmup_ratio 0 --warmup_steps 6");
    ck_assert_int_eq(parsed.warmup_steps, 6);
    // the default of a program gives way to the other one's flag
    const Program other = {
        .name = "prog", .flags = own_flags, .lines.program = COMMAND_LINE("--warmup_ratio=0.5")};
    Error e;
    Words w;
    split_words(&w, "prog", "--warmup_steps 6");
    ck_assert_int_eq(run_parse(&parsed, &other, w.argc, w.argv, &e), 0);
    ck_assert_float_eq(parsed.warmup_ratio, 0);
    ck_assert_int_eq(parsed.warmup_steps, 6);
}
END_TEST

/* ---- which line overrides which -------------------------------------------------------------- */

static int layer[5];
static const char *layer_data, *layer_file, *layer_other;
static bool layer_ask, layer_shared;
static int layer_extra;

static const Flag layer_flags[] = {
    {"row", NUMBER(layer[0], "1", 0, 9), "One."},
    {"program", NUMBER(layer[1], "1", 0, 9), "Two."},
    {"by_preset", NUMBER(layer[2], "1", 0, 9), "Three."},
    {"example", NUMBER(layer[3], "1", 0, 9), "Four."},
    {"command", NUMBER(layer[4], "1", 0, 9), "Five."},
    {"data", TEXT(layer_data, NULL), "A file.", .may_be_empty = true},
    {"file", TEXT(layer_file, NULL), "Another file.", .may_change_on_resume = true},
    {"other", TEXT(layer_other, NULL), "A way to do without it.", .conflicts = "file",
     .may_be_empty = true},
    {"ask", SWITCH(layer_ask, "false"), "Something else than the example."},
    {"shared", SWITCH(layer_shared, "false"), "A switch of a preset.", .conflicts = "extra"},
    {"extra", NUMBER(layer_extra, "1", 0, 9), "A number of the example."},
    {0},
};

static const Preset layer_presets[] = {
    {"paper", "Anybody 2020", COMMAND_LINE("--by_preset=3", "--example=3", "--command=3")},
    {"second", "Somebody 2021", COMMAND_LINE("--by-preset", "5", "--shared")},
    {0},
};

static const FlagLines layer_lines = {
    .program = COMMAND_LINE("--program=2", "--by_preset=2", "--example=2", "--command=2"),
    .presets = layer_presets,
    .example =
        COMMAND_LINE("--example=4", "--command=4", "--file=test/tiny/sft.jsonl", "--extra=6"),
    .example_unless = "data ask",
};

/* Reads a command line on a table of its own, and returns that table, or NULL with e filled. */
static FlagTable *layers(const char *words, Error *e) {
    static Words w;
    split_words(&w, "prog", words);
    FlagTable *t = flags_new();
    flags_add(t, layer_flags, NULL);
    if (flags_parse(t, &layer_lines, w.argc, w.argv, e)) {
        flags_free(t);
        return NULL;
    }
    return t;
}

static void assert_layers(const char *words, const int expected[5], bool example) {
    Error e;
    FlagTable *t = layers(words, &e);
    ck_assert_msg(t != NULL, "%s: %s", words, e.text);
    for (int i = 0; i < 5; i++)
        ck_assert_msg(layer[i] == expected[i], "%s: --%s is %d, expected %d", words,
                      layer_flags[i].name, layer[i], expected[i]);
    ck_assert_msg(!layer_file == !example, "%s: --file is %s", words, layer_file);
    flags_free(t);
}

START_TEST(test_precedence) {
    assert_layers("--preset=paper --command=5", (int[]){1, 2, 3, 4, 5}, true);
    assert_layers("--command=5 --preset paper", (int[]){1, 2, 3, 4, 5}, true);  // in any order
    assert_layers("--preset=paper", (int[]){1, 2, 3, 4, 4}, true);
    assert_layers("--preset=paper --data=x", (int[]){1, 2, 3, 3, 3}, false);
    assert_layers("--preset=paper --ask", (int[]){1, 2, 3, 3, 3}, false);
    assert_layers("--data=x", (int[]){1, 2, 2, 2, 2}, false);
    assert_layers("", (int[]){1, 2, 2, 4, 4}, true);
    assert_layers("--data= --no_ask", (int[]){1, 2, 2, 4, 4}, true);  // neither asks for anything
    assert_layers("--row=7 --program=7 --by_preset=7 --example=7 --command=7 --preset=paper",
                  (int[]){7, 7, 7, 7, 7}, true);
    assert_layers("--preset=paper --preset=second --data=x", (int[]){1, 2, 5, 2, 2}, false);
    assert_layers("--preset=paper --preset=none --data=x", (int[]){1, 2, 2, 2, 2}, false);
}
END_TEST

START_TEST(test_presets_are_checked) {
    Error e;
    ck_assert_ptr_null(layers("--preset=papers", &e));
    ck_assert_ptr_nonnull(strstr(e.text, "--preset \"papers\""));
    ck_assert_ptr_nonnull(strstr(e.text, "none, paper or second"));
    ck_assert_ptr_null(layers("--preset", &e));
    ck_assert_int_eq(parse_words("--preset=paper", &e), -1);  // a program without presets
    ck_assert_ptr_nonnull(strstr(e.text, "no flag --preset"));
}
END_TEST

START_TEST(test_example_gives_way) {
    Error e;
    FlagTable *t = layers("", &e);
    ck_assert_str_eq(layer_file, example_file("tiny/sft.jsonl"));
    ck_assert(!flags_find(t, "file")->given);  // the example's flags are not given ones
    ck_assert_int_eq(layer[3], 4);
    flags_free(t);
    // a flag of the example that conflicts with a given one is left out; the others stay
    t = layers("--other=x", &e);
    ck_assert_msg(t != NULL, "%s", e.text);
    ck_assert_ptr_null(layer_file);
    ck_assert_int_eq(layer[3], 4);
    ck_assert(flags_find(t, "other")->given);
    flags_free(t);
    ck_assert_ptr_null(layers("--other=x --file=y", &e));
    ck_assert_str_eq(e.text, "--other and --file are both given; give one of them");
    // a preset's switch, unless the command line turns it off
    t = layers("--preset=second", &e);
    ck_assert_int_eq(layer_extra, 1);
    flags_free(t);
    t = layers("--preset=second --no_shared", &e);
    ck_assert_int_eq(layer_extra, 6);
    flags_free(t);
    t = layers("--other= --file=y", &e);
    ck_assert_str_eq(layer_file, "y");
    flags_free(t);
}
END_TEST

START_TEST(test_a_table_is_read_again) {
    Error e;
    Words w;
    FlagTable *t = flags_new();
    flags_add(t, layer_flags, "row");
    ck_assert_ptr_null(flags_find(t, "row"));
    ck_assert_str_eq(flags_at(t, 0)->name, "program");
    ck_assert_ptr_null(flags_at(t, 10));
    ck_assert_ptr_null(flags_at(t, -1));
    split_words(&w, "prog", "--command=8 --file=x --preset=paper");
    ck_assert_int_eq(flags_parse(t, &layer_lines, w.argc, w.argv, &e), 0);
    ck_assert(flags_find(t, "command")->given && !flags_find(t, "program")->given);
    split_words(&w, "prog", "--ask");  // nothing of the first line is left
    ck_assert_int_eq(flags_parse(t, &layer_lines, w.argc, w.argv, &e), 0);
    ck_assert(!flags_find(t, "command")->given);
    ck_assert_int_eq(layer[4], 2);
    ck_assert_int_eq(layer[2], 2);
    ck_assert_ptr_null(layer_file);
    flags_free(t);
    flags_free(NULL);
}
END_TEST

/* ---- help and echo --------------------------------------------------------------------------- */

static int help_main(const char *name, int argc, char **argv) {
    const Program with_defaults = {
        .name = name,
        .about = "A toy.",
        .flags = own_flags,
        .lines = {.program = COMMAND_LINE("--model=/a/directory/with/quite/a/long/name/of/its/own",
                                          "--learning_rate=0.00005")}};
    run_begin(&with_defaults, argc, argv);
    return 99;
}

START_TEST(test_help) {
    Error e;
    ck_assert_int_eq(parse_words("--seed 1 --help", &e), FLAGS_HELP);
    ck_assert(parsed.seed == 42);  // the defaults are shown, not the command line's values
    ck_assert_int_eq(parse_words("-h", &e), FLAGS_SHORT_HELP);
    ck_assert_int_eq(parse_words("--version", &e), FLAGS_VERSION);
    ck_assert_int_eq(run_process(help_main, "toy", "--seed 1 --help"), 0);
    assert_said("usage: toy");
    assert_said("A toy.");
    assert_said("\nOwn flags\n");
    assert_said("red|green|blue-ish: The colour.\n");
    const char *const names[] = {"model",
                                 "data",
                                 "eval",
                                 "output",
                                 "overwrite_output_dir",
                                 "resume",
                                 "dry_run",
                                 "per_device_train_batch_size",
                                 "gradient_accumulation_steps",
                                 "num_train_epochs",
                                 "max_steps",
                                 "dataloader_drop_last",
                                 "learning_rate",
                                 "lr_scheduler_type",
                                 "warmup_steps",
                                 "warmup_ratio",
                                 "weight_decay",
                                 "max_grad_norm",
                                 "seed",
                                 "logging_steps",
                                 "eval_steps",
                                 "save_steps",
                                 "save_total_limit",
                                 "question"};
    for (int i = 0; i < COUNT(names); i++) {
        char flag[64];
        snprintf(flag, sizeof flag, "\n  --%s ", names[i]);
        assert_said(flag);
    }
    for (const char *p = said.s; *p;) {
        const size_t n = strcspn(p, "\n");
        if (strncmp(p, "  --model ", 10))  // its default is a long path here
            ck_assert_msg(n <= 100, "%zu columns: %.*s", n, (int)n, p);
        p += n + (p[n] == '\n');
    }
    const char *p = strstr(said.s, "--learning_rate ");
    ck_assert_ptr_nonnull(p);
    char value[32];
    ck_assert_int_eq(sscanf(p, "--learning_rate %31s", value), 1);
    ck_assert_str_eq(value, "5e-05");
    assert_not_said("--preset");
    assert_not_said("built-in example");
}
END_TEST

/* Is text in the help of the layers' table? */
static void assert_help(const char *help, const char *text) {
    ck_assert_msg(strstr(help, text) != NULL, "expected \"%s\" in:\n%s", text, help);
}

START_TEST(test_help_shows_presets_and_example) {
    Error e;
    FlagTable *t = layers("", &e);
    begin_capture("help.txt");
    flags_print_help(t, &layer_lines, "prog", "About it.", 100);
    end_capture();
    Str help = bytes_of("help.txt");
    assert_help(help.s, "usage: prog [--name value ...]\n\nAbout it.\n");
    assert_help(help.s, "\nPresets\n  --preset ");
    assert_help(help.s, " none, paper or second.");
    assert_help(help.s, "\nThe presets are these command lines:\n");
    assert_help(help.s,
                "\n  --preset paper: Anybody 2020\n    --by_preset=3 --example=3 --command=3\n");
    assert_help(help.s, "\n  --preset second: Somebody 2021\n    --by-preset 5 --shared\n");
    assert_help(help.s, "\nWithout arguments, prog runs its built-in example:\n");
    assert_help(help.s, "\n    --example=4 --command=4 --file=test/tiny/sft.jsonl --extra=6\n");
    free(help.s);
    flags_free(t);
}
END_TEST

/* Reads the echo of the last parse by a shell, and parses its words. Returns how many there are. */
static int parse_echo(void) {
    begin_capture("echo.sh");
    flags_echo(parsed.state->flags, "printf '%s\\n' \\", 80);
    end_capture();
    static char command[256], lines[64][256], *again[64] = {(char *)"prog"};
    int n = 1;
    snprintf(command, sizeof command, "sh %s", at("echo.sh"));
    FILE *f = popen(command, "r");
    while (n < 63 && fgets(lines[n], sizeof lines[n], f)) {
        lines[n][strcspn(lines[n], "\n")] = 0;
        again[n] = lines[n];
        n++;
    }
    ck_assert_int_eq(pclose(f), 0);
    Error e = {0};
    ck_assert_msg(run_parse(&parsed, &program, n, again, &e) == 0, "%s", e.text);
    return n;
}

/* A shell reads what the echo prints as flags that give the same values. */
START_TEST(test_echo_repeats_the_run) {
    // longer than a line
    const char *long_text =
        "it's {a}\\n $HOME \"b\" `c` 한국어 문장도 길 수 있어요, and a sentence that goes over the "
        "end "
        "of a line of eighty columns, and over that of the next one as well";
    char *argv[] = {(char *)"prog",
                    (char *)"--text",
                    (char *)long_text,
                    (char *)"--learning_rate=0.1",
                    (char *)"--num_train_epochs",
                    (char *)"0.3333333",
                    (char *)"--train_on_prompt",
                    (char *)"--kind=blue-ish",
                    (char *)"--seed",
                    (char *)"77",
                    (char *)"--warmup_ratio=0.05",
                    NULL};
    Error e;
    ck_assert_int_eq(run_parse(&parsed, &program, 11, argv, &e), 0);
    ck_assert_int_eq(parse_echo(), 1 + 7);  // no flag that has its default
    ck_assert_str_eq(own_text, long_text);
    ck_assert_float_eq(parsed.learning_rate, 0.1f);
    ck_assert_float_eq(parsed.num_train_epochs, 0.3333333f);
    ck_assert(own_switch);
    ck_assert_int_eq(own_kind, BLUE_ISH);
    ck_assert(parsed.seed == 77);
    ck_assert(!parsed.dry_run);
    ck_assert_float_eq(parsed.warmup_ratio, 0.05f);
    ck_assert_int_eq(parsed.warmup_steps, 0);
}
END_TEST

/* The echo names no flag that would be refused: not --odds, which has no effect without another
   flag, nor --data, which is excluded by a given one. */
START_TEST(test_echo_is_accepted) {
    accept("");
    ck_assert_int_eq(parse_echo(), 1);  // nothing differs
    accept("--seed 7");
    parse_echo();
    ck_assert(!run_given(&parsed, "odds"));
    ck_assert(run_given(&parsed, "seed"));
    accept("--train_on_prompt --odds 0.25");
    parse_echo();
    ck_assert_float_eq(own_odds, 0.25f);
    accept("--question why");
    parsed.data = "d.jsonl";  // as if the program had set it
    parse_echo();
    ck_assert_str_eq(own_question, "why");
    ck_assert_ptr_null(parsed.data);
}
END_TEST

/* ---- parts ----------------------------------------------------------------------------------- */

/* What is not printed as it is, is written by its bytes. */
START_TEST(test_quoted) {
    const char *const rows[][2] = {{"a/b=1", "a/b=1"},
                                   {"한국어", "'한국어'"},
                                   {"it's", "'it'\\''s'"},
                                   {"", "''"},
                                   {"a\n", "$'a\\x0a'"},
                                   {"a\377", "$'a\\xff'"},
                                   {"a\xC2\x9B", "$'a\\xc2\\x9b'"},
                                   {"a\xE2\x80\xAE", "$'a\\xe2\\x80\\xae'"}};
    for (int i = 0; i < COUNT(rows); i++) {
        Str quoted = {0};
        add_quoted(&quoted, rows[i][0]);
        ck_assert_str_eq(quoted.s, rows[i][1]);
        free(quoted.s);
    }
}
END_TEST

START_TEST(test_words_and_numbers) {
    ck_assert(word_in("a bc d", "a") && word_in("a bc d", "bc") && word_in("a bc d", "d"));
    ck_assert(!word_in("a bc d", "b") && !word_in("a bc d", "c") && !word_in(NULL, "a"));
    ck_assert(word_in("abc bc", "bc") && !word_in("", "a"));
    double x;
    long long n;
    ck_assert(read_number("-2.5e3", &x) && x == -2500);
    const char *const bad[] = {"", " 1", "1 ", "nan", "inf", "0x1", "1e999", "1,5", "e"};
    for (int i = 0; i < COUNT(bad); i++) ck_assert_msg(!read_number(bad[i], &x), "%s", bad[i]);
    ck_assert(read_whole("-12", &n) && n == -12);
    ck_assert(!read_whole("1.0", &n) && !read_whole("", &n) && !read_whole("1e3", &n));
    const struct {
        double x;
        const char *text;
    } row[] = {{0, "0"},         {1e6, "1000000"},   {-7, "-7"},
               {0.1f, "0.1"},    {0.1, "0.1"},       {1.0 / 3, "0.3333333333333333"},
               {5e-5f, "5e-05"}, {1e20, "1e+20"},    {12345678901.0, "12345678901"},
               {0.5, "0.5"},     {1e-300, "1e-300"}, {(double)3e-6f, "3e-06"}};
    for (int i = 0; i < COUNT(row); i++) {
        char text[64];
        ck_assert_str_eq(number_text(row[i].x, text), row[i].text);
    }
}
END_TEST

START_TEST(test_example_file) {
    const char *path = example_file("tiny/config.json");
    ck_assert_ptr_nonnull(strstr(path, "/test/tiny/config.json"));
    ck_assert_int_eq(access(path, R_OK), 0);
    ck_assert_int_eq(chdir("/"), 0);  // wherever the program was started from
    ck_assert_ptr_eq(example_file("tiny/config.json"), path);
    ck_assert_int_ne(access(example_file("tiny/no-such-file"), F_OK), 0);
}
END_TEST

static void setup(void) { make_directory(); }

int main(void) {
    Suite *suite = suite_create("flags");
    const TTest *const values[] = {test_accepts,
                                   test_flags_left_out,
                                   test_switches,
                                   test_choices_are_enums,
                                   test_bare_value,
                                   test_refuses,
                                   test_no_bad_advice,
                                   test_only_with,
                                   test_warmup_ratio_replaces_steps,
                                   test_names_of_other_libraries,
                                   test_flags_without_effect,
                                   test_several_files};
    const TTest *const lines[] = {test_precedence, test_presets_are_checked, test_example_gives_way,
                                  test_a_table_is_read_again};
    const TTest *const texts[] = {test_help,
                                  test_help_shows_presets_and_example,
                                  test_echo_repeats_the_run,
                                  test_echo_is_accepted,
                                  test_quoted,
                                  test_words_and_numbers,
                                  test_example_file};
    add_tests(suite, "values", setup, values, COUNT(values));
    add_tests(suite, "lines", setup, lines, COUNT(lines));
    add_tests(suite, "texts", setup, texts, COUNT(texts));
    return finish_suite(suite);
}
