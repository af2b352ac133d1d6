/*
 * fuzz_state.c - libFuzzer on state.safetensors, the state of a checkpoint: its moments and the
 * figures of the log line. The input is a file, and then, up to its first NUL, a text of figures.
 *
 *   make fuzz-fuzz_state
 */
#include "files/hf.h"
#include "run/private.h"

static const Flag no_flags[] = {{0}};
static const Program program = {.name = "fuzz", .about = "", .flags = no_flags};

static GPT2 *tiny_model(void) {
    const GPT2Config config = {.n_positions = 3,
                               .vocab_size = 5,
                               .n_layer = 1,
                               .n_head = 1,
                               .n_embd = 2,
                               .n_inner = 4,
                               .layer_norm_epsilon = 1e-5f};
    GPT2 *m = gpt2_create(&config, false);
    gpt2_reserve(m, &(GPT2Limits){.tokens = 2, .sequences = 1, .scored = 2, .train = true});
    return m;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);
size_t LLVMFuzzerMutate(uint8_t *bytes, size_t n, size_t room);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t n, size_t room, unsigned seed);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    static GPT2 *m;
    static Run run;
    Error e;
    char *argv[] = {"fuzz", NULL};
    if (!m) m = tiny_model();
    SafeTensors *st = st_parse(bytes, n, "state", &e);
    if (st) {
        hf_read_moments(st, m, "", &e);
        hf_read_moments(st, m, "critic.", &e);
        st_close(st);
    }
    Str text = {0};
    str_add(&text, (const char *)bytes, strnlen((const char *)bytes, n));
    if (run_parse(&run, &program, 1, argv, &e)) abort();
    if (!watch_restore(&run, text.s)) {
        for (int i = 0; i < run.state->figures; i++) figure_value(&run, &run.state->figure[i]);
        char *again = watch_text(&run);
        free(again);
    }
    run_free(&run);
    free(text.s);
    return 0;
}

/* Starts from the figures of a log line, or from a file without a tensor. */
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t n, size_t room, unsigned seed) {
    static const char figures[] = "mean loss 1.5 2;combined both 0 0;max top -inf 0;total t 3 0;";
    static const char file[] = "\x20\0\0\0\0\0\0\0{\"__metadata__\":{\"a\":\"b\"}}    ";
    if ((n < 8 || seed % 64 == 0) && room >= sizeof figures) {
        const bool text = seed & 64;
        n = text ? sizeof figures - 1 : sizeof file - 1;
        memcpy(bytes, text ? figures : file, n);
    }
    return LLVMFuzzerMutate(bytes, n, room);
}
