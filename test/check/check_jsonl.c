/*
 * check_jsonl.c - JSON of any bytes, and files of JSON objects: lines, arrays, other formats.
 */
#include <sys/stat.h>

#include "text_files.h"

#include "text/json.h"

/* ---- JSON ------------------------------------------------------------------------------------ */

static void check_string(const char *s, size_t n, const char *expected) {
    Str out = {0};
    json_add_string(&out, s, n);
    ck_assert_str_eq(out.s, expected);
    free(out.s);
}

START_TEST(json_strings) {
    check_string("", 0, "\"\"");
    check_string("a\"\\\n\t\0/\x7F", 8, "\"a\\\"\\\\\\n\\u0009\\u0000/\\u007f\"");
    check_string("\xED\x95\x9C", 3, "\"\xED\x95\x9C\"");
    check_string("\xED\x95", 2,
                 "\"\xEF\xBF\xBD\xEF\xBF\xBD\"");  // half a character, as a token may end
}
END_TEST

START_TEST(numbers_in_json) {
    static const struct {
        const char *text;
        int count;
        double first;
        const char *word;
    } cases[] = {
        {"{\"x\": 2.5}", 1, 2.5, NULL},
        {" {\"y\": \"s\", \"x\": -3}\n", 1, -3, NULL},
        {"{\"x\": [1e-3, 2, 3]}", 3, 1e-3, NULL},
        {"{\"x\": []}", 0, 7, NULL},
        {"{\"x\": null}", -1, 7, "null"},
        {"{\"x\": \"1\"}", -1, 7, "a string, expected a number"},
        {"{\"y\": 1}", -1, 7, "no \"x\""},
        {"[1]", -1, 7, "an array, expected an object"},
        {"3", -1, 7, "a number, expected an object"},
        {"", -1, 7, "not JSON"},
        {"{\"x\": NaN}", -1, 7, "not JSON"},
        {"{\"x\": 1", -1, 7, "not JSON"},
        {"{\"x\": [1, {}]}", -1, 1, "element 1"},
        {"{\"x\": 1, \"x\": 2}", -1, 7, "not JSON"},
        {"{\"x\": 1} {}", -1, 7, "not JSON"},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        double out[2] = {7, 7};
        Error e = {0};
        ck_assert_msg(
            json_numbers(cases[i].text, strlen(cases[i].text), "x", out, 2, &e) == cases[i].count,
            "%s", cases[i].text);
        ck_assert(out[0] == cases[i].first);
        if (cases[i].word)
            ck_assert_msg(strstr(e.text, cases[i].word) != NULL, "%s: \"%s\"", cases[i].text,
                          e.text);
    }
}
END_TEST

/* ---- files of objects ------------------------------------------------------------------------ */

/* Reads texts; each must be "a", "b", ... */
static Records must_read_letters(const char *text, int n) {
    Records r = must_read(text, NULL);
    ck_assert_int_eq(r.n, n);
    for (int i = 0; i < n; i++) {
        const char letter[2] = {(char)('a' + i), 0};
        ck_assert_str_eq(r.v[i].spans[0].text, letter);
    }
    return r;
}

/* Reading fails, with and without strict, and the message contains the word. */
static void check_refused(const char *bytes, size_t n, const char *word) {
    for (int strict = 0; strict < 2; strict++) {
        Records r;
        Error e = {0};
        ck_assert_msg(read_bytes(bytes, n, NULL, strict, &r, &e) == -1, "%s", bytes);
        ck_assert_msg(strstr(e.text, word) != NULL, "%s\n%s", bytes, e.text);
        ck_assert(r.n == 0 && !r.v);
    }
}

START_TEST(arrays) {
    static const char *const same[] = {
        "[{\"text\": \"a\"}, {\"text\": \"b\"}, {\"text\": \"c\"}]",
        "\xEF\xBB\xBF\n [{\"text\":\"a\"},{\"text\":\"b\"},{\"text\":\"c\"}] \n\n",
        "[\n{\"text\": \"a\"},\n{\"text\": \"b\"},\n{\"text\": \"c\"}\n]\n",
        ("[\r\n  {\r\n    \"text\": \"a\"\r\n  },\r\n  {\r\n    \"text\": \"b\"\r\n  },\r\n  "
         "{\"x\": [1, {\"y\": \"]\\\"},\"}], \"text\": \"c\"\r\n}\r\n]"),
        "[{\"text\": \"a\"}\n, {\"text\": \"b\"}, {\"text\": \"c\"},]",
    };
    for (int i = 0; i < COUNT(same); i++) {
        Records r = must_read_letters(same[i], 3);
        records_free(&r);
    }
    Records r = must_read_letters("[\n{\"text\": \"a\"},\n\n{\n\"text\": \"b\"}]\n", 2);
    ck_assert(r.v[0].line == 2 && r.v[1].line == 4);
    records_free(&r);
    // an element that is no record is skipped like a line, and its place is named
    Error e = {0};
    static const char one_bad[] =
        "[{\"text\": \"a\"},\n {\"한\": 1,\n  \"text\": 7}, {\"text\": "
        "\"b\"}]";
    ck_assert_int_eq(read_bytes(one_bad, sizeof one_bad - 1, NULL, false, &r, &e), 0);
    ck_assert(r.n == 2 && r.counts.skipped == 1 && r.counts.lines == 3);
    ck_assert_msg(strstr(r.counts.first_skipped.text, "records.jsonl:3:3: \"text\" is a number"),
                  "%s", r.counts.first_skipped.text);
    records_free(&r);
    ck_assert_int_eq(read_bytes(one_bad, sizeof one_bad - 1, NULL, true, &r, &e), -1);
}
END_TEST

START_TEST(wrong_arrays) {
#define GOOD "{\"text\": \"a\"}, {\"text\": \"a\"}, {\"text\": \"a\"}"
    static const struct {
        const char *text, *word;
    } wrong[] = {
        {"[]", "it is empty"},
        {"[", "1:2: the array has no ] at its end"},
        {"[" GOOD, "the array has no ] at its end"},
        {"[" GOOD ", {\"text\": \"a", "premature end of input"},
        {"[" GOOD ", {\"text\": \"a},\n{\"text\": \"b\"}]", "read whole or not at all"},
        {"[" GOOD "\n{\"text\": \"a\"}]", "records.jsonl:2:1: a comma is missing"},
        {"[" GOOD "] x", "there is text after the end of the array"},
        {"[" GOOD "]\n[" GOOD "]\n", "records.jsonl:2:1: there is text after the end"},
        {"[{\"role\": \"user\", \"content\": \"a\"}]", "A message by itself is no record"},
    };
    for (int i = 0; i < COUNT(wrong); i++)
        check_refused(wrong[i].text, strlen(wrong[i].text), wrong[i].word);
}
END_TEST

START_TEST(objects_over_several_lines) {
    Records r = must_read_letters("{\n  \"text\": \"a\"\n}\n{\n  \"text\": \"b\"\n}\n", 2);
    ck_assert(r.v[0].line == 1 && r.v[1].line == 4);
    records_free(&r);
    // one object that holds the records
    static const char data[] = "{\n\"version\": \"1\", \"data\": [{\"text\": \"a\"}]\n}\n",
                      broken[] = "{\n  \"text\": \"a\"\n}\n{\n  \"text\": \"b\n}\n";
    check_refused(data, sizeof data - 1, "jq -c '.[\"data\"][]'");
    static const char *const wrapped[] = {
        "{\"data\": [{\"text\": \"a\"}, {\"text\": \"b\"}]}\n",
        "{\"data\": [\n{\"text\": \"a\"},\n{\"text\": \"b\"}\n]}\n",
        "{\"version\": 1, \"data\": [{\n\"text\": \"a\"}, {\"text\": \"b\"}]\n}\n"};
    for (int i = 0; i < COUNT(wrapped); i++)
        check_refused(wrapped[i], strlen(wrapped[i]), "jq -c '.[\"data\"][]'");
    check_refused(broken, sizeof broken - 1, "read whole or not at all");
}
END_TEST

START_TEST(constants_of_python) {
    Records r = must_read(
        "{\"instruction\": \"NaN\", \"input\": NaN, \"output\": \"-Infinity\"}\n"
        "{\"instruction\": \"\\\"NaN\", \"x\": [NaN, -Infinity, Infinity], "
        "\"output\": \"b\"}\n",
        "{instruction}[[|{input}]]");
    ck_assert_int_eq(r.n, 2);
    ck_assert_str_eq(r.v[0].spans[0].text, "NaN");
    ck_assert_str_eq(r.v[0].spans[1].text, "-Infinity");
    ck_assert_str_eq(r.v[1].spans[0].text, "\"NaN");
    records_free(&r);
    // an infinite margin is no number; a missing one is none
    Error e;
    ck_assert_int_eq(read_pairs("{\"prompt\": \"P\", \"chosen\": \"C\", \"rejected\": \"R\", "
                                "\"margin\": NaN}\n{\"prompt\": \"P\", \"chosen\": \"C\", "
                                "\"rejected\": \"R\", \"margin\": Infinity}\n",
                                NULL, false, &r, &e),
                     0);
    ck_assert(r.n == 1 && r.v[0].margin == 0);
    ck_assert_msg(strstr(r.counts.first_skipped.text, ":2:49: \"margin\" is a string"), "%s",
                  r.counts.first_skipped.text);
    records_free(&r);
    // the place of another mistake is that in the file
    static const char wrong[] = "{\"x\": NaN, \"text\": tru}\n";
    check_refused(wrong, sizeof wrong - 1, ":1:9: ");
}
END_TEST

START_TEST(more_bad_lines_than_good_ones) {
    static const char half[] = "{\"text\": \"a\"}\nx\n", most[] = "{\"text\": \"a\"}\nx\ny\n";
    Records r;
    Error e = {0};
    ck_assert_int_eq(read_bytes(half, sizeof half - 1, NULL, false, &r, &e), 0);
    ck_assert(r.n == 1 && r.counts.skipped == 1 && r.counts.lines == 2);
    records_free(&r);
    ck_assert_int_eq(read_bytes(most, sizeof most - 1, NULL, false, &r, &e), -1);
    ck_assert_msg(strstr(e.text, "2 of 3 lines cannot be used; the first: ") &&
                      strstr(e.text, "records.jsonl:2:1: "),
                  "%s", e.text);
}
END_TEST

START_TEST(several_files) {
    Records r;
    Error e = {0};
    char list[300];
    write_text("records.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n");
    write_text("prompts.jsonl", "[{\"text\": \"c\"},\n{\"text\": 7}]");
    snprintf(list, sizeof list, "%s/records.jsonl,%s/prompts.jsonl", directory, directory);
    ck_assert_msg(records_read(list, NULL, false, &r, &e) == 0, "%s", e.text);
    ck_assert(r.n == 3 && r.counts.lines == 4 && r.counts.skipped == 1);
    ck_assert(r.v[1].line == 3 && r.v[2].line == 4);
    ck_assert_ptr_nonnull(
        strstr(r.counts.first_skipped.text, "prompts.jsonl:2:2: \"text\" is a number"));
    records_free(&r);
    snprintf(list, sizeof list, "%s/records.jsonl,%s/absent.jsonl", directory, directory);
    ck_assert_int_eq(records_read(list, NULL, false, &r, &e), -1);
    ck_assert_ptr_nonnull(strstr(e.text, "cannot open"));
    ck_assert_ptr_nonnull(strstr(e.text, "/absent.jsonl"));
}
END_TEST

#define BYTES(text) text, sizeof(text) - 1

START_TEST(other_formats_are_named) {
    static const struct {
        const char *bytes;
        size_t n;
        const char *name, *command;
    } one[] = {
        {BYTES("\xFF\xFE{\0\"\0"), "is UTF-16", "iconv -f utf-16 -t utf-8 "},
        {BYTES("\xFE\xFF\0{\0\""), "is UTF-16", "iconv -f utf-16 -t utf-8 "},
        {BYTES("{\0\"\0t\0"), "is UTF-16", "iconv -f utf-16le"},
        {BYTES("\xFF\xFE\0\0{\0\0\0"), "is UTF-32", "iconv -f utf-32 "},
        {BYTES("\x1F\x8B\x08\0\0\0"), "compressed by gzip", "gzip -dc "},
        {BYTES("\x28\xB5\x2F\xFD\x24"), "compressed by zstd", "zstd -dc "},
        {BYTES("PAR1\x15\x04"), "is Parquet", "read_parquet"},
        // the first bytes of a file of datasets' cache, by datasets 4
        {BYTES("\xFF\xFF\xFF\xFF\x60\x01\0\0\x10\0"), "an Arrow stream", "Dataset.from_file"},
        {BYTES("PK\3\4\x14"), "a zip archive", "unzip -p "},
        {BYTES("\x80\x04\x95"), "a pickle of Python", "read_pickle"},
        {BYTES("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "Git LFS", "git lfs"},
        {BYTES("<!DOCTYPE html>\n<html>"), "a page of HTML", "fetch the file itself"},
    };
    for (int i = 0; i < COUNT(one); i++) {
        check_refused(one[i].bytes, one[i].n, one[i].name);
        check_refused(one[i].bytes, one[i].n, one[i].command);
        check_refused(one[i].bytes, one[i].n, in_directory("records.jsonl"));
    }
    // a directory of datasets' save_to_disk
    Records r;
    Error e = {0};
    ck_assert_int_eq(mkdir(in_directory("saved"), 0777), 0);
    write_text("saved/dataset_info.json", "{}");
    ck_assert_int_eq(records_read(in_directory("saved"), NULL, false, &r, &e), -1);
    ck_assert_msg(strstr(e.text, "is a directory") && strstr(e.text, "datasets.load_from_disk("),
                  "%s", e.text);
    ck_assert_int_eq(records_read("tatsu-lab/alpaca", NULL, false, &r, &e), -1);
    ck_assert_msg(
        strstr(e.text, "datasets.load_dataset(sys.argv[1]") && strstr(e.text, "' tatsu-lab/alpaca"),
        "%s", e.text);
    ck_assert_int_eq(records_read("https://example.org/a.jsonl", NULL, false, &r, &e), -1);
    ck_assert_msg(strstr(e.text, "curl -L -o my.jsonl https://example.org/a.jsonl"), "%s", e.text);
    ck_assert_int_eq(records_read("data/absent.jsonl", NULL, false, &r, &e), -1);
    ck_assert_msg(!strstr(e.text, "hub"), "%s", e.text);
    unlink(in_directory("saved/dataset_info.json"));
    rmdir(in_directory("saved"));
    // Korean in CP949, of which jansson tells one byte; and accents in Windows-1252
    check_refused(BYTES("{\"text\": \"\xB4\xE4 1\"}\n"), "iconv -f cp949 -t utf-8 ");
    check_refused(BYTES("{\"text\": \"caf\xE9 1\"}\n"), "iconv -f windows-1252 -t utf-8 ");
}
END_TEST

START_TEST(text_that_is_not_json) {
    check_refused(BYTES("instruction,output\na,b\nc,d\n"), "delimiter=\",\"");
    check_refused(BYTES("instruction\toutput\na\tb\n"), "delimiter=\"\\t\"");
    check_refused(BYTES("instruction;output\na;b\n"), "csv.DictReader");
    check_refused(BYTES("instruction,output\na,b\n"), "encoding=\"utf-8-sig\"");
    check_refused(BYTES("instruction,output\n\xB4\xE4,b\n"), "encoding=\"cp949\"");
    check_refused(BYTES("{'text': 'a'}\n{'text': 'b'}\n"), "ast.literal_eval");
    check_refused(BYTES("{\"text\": \"a\"}\r{\"text\": \"b\"}\r"), "tr '\\r' '\\n' <");
    check_refused(BYTES("{\"text\": \"a\"},\r\n{\"text\": \"b\"},\r\n"),
                  "sed 's/,[[:space:]]*$//' ");
    check_refused(BYTES("{\"text\": \"a\"}{\"text\": \"b\"}\n"), "jq -c . ");
    check_refused(BYTES("Once upon a time\nthere was a text.\n"), "jq -R -c ");
}
END_TEST

int main(void) {
    const TTest *const json[] = {json_strings, numbers_in_json};
    const TTest *const files[] = {arrays,
                                  wrong_arrays,
                                  objects_over_several_lines,
                                  constants_of_python,
                                  more_bad_lines_than_good_ones,
                                  other_formats_are_named,
                                  text_that_is_not_json,
                                  several_files};
    Suite *s = suite_create("jsonl");
    add_case(s, "json", json, COUNT(json));
    add_case(s, "files", files, COUNT(files));
    return run_cases(s);
}
