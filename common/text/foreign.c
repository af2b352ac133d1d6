/*
 * foreign.c - files that are not JSONL in UTF-8: see foreign.h.
 */
#include "text/foreign.h"

#include "text/utf8.h"

#include <ctype.h>

/* Appends a sentence to a message. */
PRINTF_LIKE(2, 3) static void append(Error *e, const char *format, ...) {
    const size_t n = strlen(e->text);
    va_list args;
    va_start(args, format);
    vsnprintf(e->text + n, sizeof e->text - n, format, args);
    va_end(args);
}

/* The path as a shell reads it back, in text. */
static const char *quoted(const char *path, char text[300]) {
    bool plain = true;
    for (const char *p = path; *p; p++)
        plain &= isalnum((unsigned char)*p) || (unsigned char)*p > 127 || strchr("-_+./:@%", *p);
    snprintf(text, 300, plain ? "%.250s" : "'%.250s'", path);
    return text;
}

/* ---- formats that are not text in UTF-8 ------------------------------------------------------ */

#define PANDAS(reader)                               \
    "python3 -c 'import pandas, sys; pandas." reader \
    "(sys.argv[1]).to_json(\"my.jsonl\", orient=\"records\", lines=True, force_ascii=False)' %s"

/* A format by its first bytes. The command contains %s for the file. */
typedef struct {
    const char *magic;
    size_t n;
    const char *name, *command;
} Format;

#define MAGIC(bytes) bytes, sizeof(bytes) - 1

static const Format formats[] = {
    {MAGIC("\xFF\xFF\xFF\xFF"), "an Arrow stream, such as datasets keeps in its cache",
     "python3 -c 'import datasets, sys; "
     "datasets.Dataset.from_file(sys.argv[1]).to_json(\"my.jsonl\", force_ascii=False)' %s"},
    {MAGIC("\xFF\xFE\0\0"), "UTF-32", "iconv -f utf-32 -t utf-8 %s >my.jsonl"},
    {MAGIC("\0\0\xFE\xFF"), "UTF-32", "iconv -f utf-32 -t utf-8 %s >my.jsonl"},
    {MAGIC("\xFF\xFE"), "UTF-16", "iconv -f utf-16 -t utf-8 %s >my.jsonl"},
    {MAGIC("\xFE\xFF"), "UTF-16", "iconv -f utf-16 -t utf-8 %s >my.jsonl"},
    {MAGIC("{\0\0\0"), "UTF-32", "iconv -f utf-32le -t utf-8 %s >my.jsonl"},
    {MAGIC("[\0\0\0"), "UTF-32", "iconv -f utf-32le -t utf-8 %s >my.jsonl"},
    {MAGIC("{\0"), "UTF-16", "iconv -f utf-16le -t utf-8 %s >my.jsonl"},
    {MAGIC("[\0"), "UTF-16", "iconv -f utf-16le -t utf-8 %s >my.jsonl"},
    {MAGIC("\0{"), "UTF-16", "iconv -f utf-16be -t utf-8 %s >my.jsonl"},
    {MAGIC("\0["), "UTF-16", "iconv -f utf-16be -t utf-8 %s >my.jsonl"},
    {MAGIC("\x1F\x8B"), "compressed by gzip", "gzip -dc %s >my.jsonl"},
    {MAGIC("BZh"), "compressed by bzip2", "bzip2 -dc %s >my.jsonl"},
    {MAGIC("\xFD"
           "7zXZ"),
     "compressed by xz", "xz -dc %s >my.jsonl"},
    {MAGIC("\x28\xB5\x2F\xFD"), "compressed by zstd", "zstd -dc %s >my.jsonl"},
    {MAGIC("PAR1"), "Parquet", PANDAS("read_parquet")},
    {MAGIC("ARROW1"), "Arrow", PANDAS("read_feather")},
    {MAGIC("PK\3\4"), "a zip archive (an .xlsx or .npz file is one, too)",
     "unzip -p %s >my.jsonl (a spreadsheet must first be saved as CSV)"},
    {MAGIC("SQLite format 3"), "an SQLite database",
     "sqlite3 -json %s 'select * from a_table' | jq -c '.[]' >my.jsonl"},
    {MAGIC("version https://git-lfs"), "a pointer of Git LFS and not the data",
     "git lfs pull --include %s, in its repository"},
    {MAGIC("\x80\x02"), "a pickle of Python", PANDAS("read_pickle")},
    {MAGIC("\x80\x03"), "a pickle of Python", PANDAS("read_pickle")},
    {MAGIC("\x80\x04"), "a pickle of Python", PANDAS("read_pickle")},
    {MAGIC("\x80\x05"), "a pickle of Python", PANDAS("read_pickle")},
    {MAGIC("<!DOCTYPE"), "a page of HTML and not the data", "fetch the file itself instead of %s"},
    {MAGIC("<html"), "a page of HTML and not the data", "fetch the file itself instead of %s"},
};

int foreign_check(const char *path, const char *head, size_t n, Error *e) {
    char name[300];
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        const Format *f = &formats[i];
        if (n < f->n || memcmp(head, f->magic, f->n)) continue;
        fail(e, "%s is %s, and records are JSON lines in UTF-8; convert it: ", path, f->name);
        append(e, f->command, quoted(path, name));
        return -1;
    }
    return 0;
}

/* ---- text that is not JSON ------------------------------------------------------------------- */

/* The lines begin like JSON objects: is there a comma after each, or more than one in a line? */
static void hint_objects(const char *head, size_t n, const char *name, Error *e) {
    const char *line_end = memchr(head, '\n', n), *end = line_end ? line_end : head + n;
    while (end > head && isspace((unsigned char)end[-1])) end--;
    bool two = false;
    for (const char *p = head; p + 1 < end; p++) two |= *p == '}' && p[1] == '{';
    if (end - head > 1 && end[-1] == ',' && end[-2] == '}')
        append(e, ". If each line ends with a comma: sed 's/,[[:space:]]*$//' %s >my.jsonl", name);
    else if (two)
        append(e, ". If objects follow each other in a line: jq -c . %s >my.jsonl", name);
}

void foreign_hint(const char *path, const char *head, size_t n, Error *e) {
    char name[300];
    quoted(path, name);
    if (n >= 3 && !memcmp(head, "\xEF\xBB\xBF", 3)) {
        head += 3;
        n -= 3;
    }
    const char *end = head + n;
    while (end > head && end[-1] != '\n') end--;
    const bool utf8 = utf8_valid(head, end > head ? (size_t)(end - head) : n);
    while (n && isspace((unsigned char)*head)) {
        head++;
        n--;
    }
    if (n > 1 && *head == '{' && head[1] == '\'') {
        append(e,
               ". The lines are Python's dictionaries, not JSON; convert them: python3 -c 'import "
               "ast, json, sys; [print(json.dumps(ast.literal_eval(x))) for x in "
               "open(sys.argv[1])]' %s >my.jsonl",
               name);
        return;
    }
    if (memchr(head, '\r', n) && !memchr(head, '\n', n)) {
        append(e,
               ". The lines end with a carriage return alone; convert them: tr '\\r' '\\n' <%s "
               ">my.jsonl",
               name);
        return;
    }
    if (n && *head == '{') hint_objects(head, n, name, e);
    if (!n || strchr("{[\"", *head)) return;
    size_t commas = 0, tabs = 0, semicolons = 0, line = 0;
    for (; line < n && head[line] != '\n'; line++) {
        commas += head[line] == ',';
        tabs += head[line] == '\t';
        semicolons += head[line] == ';';
    }
    const char *extension = strrchr(path, '.');
    if (extension && (!strcmp(extension, ".yaml") || !strcmp(extension, ".yml"))) {
        append(e,
               ". If the file is YAML, convert it: python3 -c 'import json, sys, yaml; "
               "[print(json.dumps(x)) for x in yaml.safe_load(open(sys.argv[1]))]' %s >my.jsonl",
               name);
        return;
    }
    const bool csv = extension && (!strcmp(extension, ".csv") || !strcmp(extension, ".tsv"));
    if (tabs || commas || semicolons || csv) {
        const char *separator = tabs ? "\"\\t\"" : semicolons > commas ? "\";\"" : "\",\"";
        append(e,
               ". If the file is CSV, convert it: python3 -c 'import csv, json, sys; "
               "[print(json.dumps(x)) for x in csv.DictReader(open(sys.argv[1], newline=\"\", "
               "encoding=\"%s\"), delimiter=%s)]' %s >my.jsonl",
               utf8 ? "utf-8-sig" : "cp949", separator, name);
        return;
    }
    append(e,
           ". If the file is plain text, full_ft and the others learn it as records of one "
           "paragraph: jq -R -c 'select(. != \"\") | {text: .}' %s >my.jsonl",
           name);
}

/* Is it a name of the hub, "owner/name"? */
static bool is_hub_name(const char *path) {
    const char *slash = strchr(path, '/');
    return slash && slash > path && slash[1] && !strpbrk(slash + 1, "/.") && *path != '.';
}

void foreign_path(const char *path, Error *e) {
    char name[300];
    quoted(path, name);
    if (!strncmp(path, "http://", 7) || !strncmp(path, "https://", 8))
        append(e, "; data are files here: curl -L -o my.jsonl %s", name);
    else if (exists_in(path, "dataset_info.json") || exists_in(path, "dataset_dict.json"))
        append(
            e,
            ". It was saved by datasets; convert it: python3 -c 'import datasets, sys; "
            "datasets.load_from_disk(sys.argv[1])%s.to_json(\"my.jsonl\", force_ascii=False)' %s",
            exists_in(path, "dataset_dict.json") ? "[\"train\"]" : "", name);
    else if (!file_exists(path) && is_hub_name(path))
        append(
            e,
            "; data are files here. If it is a data set of the hub: python3 -c 'import datasets, "
            "sys; datasets.load_dataset(sys.argv[1], split=\"train\").to_json(\"my.jsonl\", "
            "force_ascii=False)' %s",
            name);
}

/* ---- encodings ------------------------------------------------------------------------------- */

/* Are all bytes above 127 parts of the pairs of CP949: a byte from 0x81 to 0xFE, then a letter or
   a byte from 0x81 to 0xFE? */
static bool is_cp949(const char *line, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)line[i];
        if (c < 0x80) continue;
        const unsigned char next = i + 1 < n ? (unsigned char)line[++i] : 0;
        if (c == 0x80 || c == 0xFF || next == 0x80 || next == 0xFF) return false;
        if (next < 0x80 && !isalpha(next)) return false;
    }
    return true;
}

void foreign_encoding(const char *path, const char *line, size_t n, Error *e) {
    char name[300];
    quoted(path, name);
    if (is_cp949(line, n))
        append(e,
               ". The line is not UTF-8; Korean files are often CP949: iconv -f cp949 -t utf-8 %s "
               ">my.jsonl",
               name);
    else
        append(e,
               ". The line is not UTF-8; if the file is Windows-1252: iconv -f windows-1252 -t "
               "utf-8 %s >my.jsonl",
               name);
}
