/*
 * help.c - what --help and -h print: see flags.h.
 */
#include "run/flags.h"
#include "run/table.h"

/* The beginning of a text up to the end of its first sentence, to be freed. */
static char *first_sentence(const char *text) {
    const char *end = strstr(text, ". ");
    return end ? xstrndup(text, (size_t)(end - text) + 1) : xstrdup(text);
}

/* Prints text from column `column`, where the cursor is, to column `columns`. Breaks at blanks. */
static void print_wrapped(const char *text, int column, int columns) {
    int at = column;
    while (*text) {
        const int word = (int)strcspn(text, " \n");
        if (at > column && at + 1 + word > columns) {
            printf("\n%*s", column, "");
            at = column;
        } else if (at > column) {
            putchar(' ');
            at++;
        }
        printf("%.*s", word, text);
        at += word;
        text += word;
        text += strspn(text, " \n");
    }
    putchar('\n');
}

/* A command line, with blanks inside a word quoted, from column `column` on. */
static void print_line(const char *const *line, int column, int columns) {
    Str text = {0};
    for (const char *const *word = line; *word; word++) {
        const size_t name = strcspn(*word, "=");
        str_printf(&text, "%s%.*s", text.n ? " " : "", (int)name, *word);
        if (!(*word)[name]) continue;
        str_add(&text, "=", 1);
        add_quoted(&text, *word + name + 1);
    }
    printf("%*s", column, "");
    print_wrapped(text.s, column, columns);
    free(text.s);
}

void flags_print_help(const FlagTable *t, const FlagLines *lines, const char *program,
                      const char *about, int columns) {
    const Flag *f;
    printf("usage: %s [--name value ...]\n\n", program);
    print_wrapped(about, 0, columns);
    for (int i = 0; (f = flags_at(t, i)); i++) {
        char text[64];
        if (f->type == FLAG_TITLE) {
            printf("\n%s\n", f->help);
            continue;
        }
        const char *value = flag_text(f, text);
        int column = printf("  --%-28s %-12s", f->name, value && *value ? value : "-");
        if (columns < 100)
            column = printf("\n%6s", "") - 1;  // no room beside it
        else if (column >= 50)
            column = printf("\n%46s", "") - 1;  // after a long default
        else
            column += printf(" ");
        Str help = {0};
        if (f->choices) str_printf(&help, "%s: ", f->choices);
        str_printf(&help, "%s", f->help);
        print_wrapped(help.s, column, columns);
        free(help.s);
    }
    if (lines->notes) printf("\n%s", lines->notes);
    for (const Preset *p = lines->presets; p && p->name; p++) {
        if (p == lines->presets) printf("\nThe presets are these command lines:\n");
        printf("  --preset %s: %s\n", p->name, p->source);
        print_line(p->line, 4, columns);
    }
    if (lines->example) {
        printf("\nWithout arguments, %s runs its built-in example:\n", program);
        print_line(lines->example, 4, columns);
    }
    table_print_legend(program);
    printf(
        "\nThe second column is the default. --name value and --name=value are the same, and so "
        "are\n- and _. --no_name turns a switch off. The last of two equal flags counts.\n"
        "-h prints a short help, --version the version.\n");
}

void flags_print_short_help(const FlagTable *t, const FlagLines *lines, const char *program,
                            const char *about, int columns) {
    static const char *const most_used[] = {"model",
                                            "adapter",
                                            "reward_model",
                                            "data",
                                            "prompts",
                                            "eval",
                                            "output",
                                            "resume",
                                            "dry_run",
                                            "max_length",
                                            "learning_rate",
                                            "num_train_epochs",
                                            "per_device_train_batch_size",
                                            "total_episodes",
                                            "score",
                                            "merge",
                                            "prompt",
                                            "chat"};
    int flags = 0;
    const Flag *f;
    printf("usage: %s [--name value ...]\n\n", program);
    print_wrapped(about, 0, columns);
    printf("\n  ./%s\n      runs the built-in example, which takes half a minute\n%s\n", program,
           lines->uses ? lines->uses : "");
    for (size_t i = 0; i < sizeof most_used / sizeof *most_used; i++) {
        char text[64];
        if (!(f = flags_find(t, most_used[i]))) continue;
        const char *value = flag_text(f, text);
        int column = printf("  --%-28s %-6s ", f->name, value && *value ? value : "-");
        if (columns < 70) column = printf("\n%6s", "") - 1;  // no room beside it
        char *first = first_sentence(f->help);
        print_wrapped(first, column, columns);
        free(first);
    }
    for (int i = 0; (f = flags_at(t, i)); i++) flags += f->type != FLAG_TITLE;
    printf("\n--help lists all %d flags, the table that is printed in training, and more.\n",
           flags);
}
