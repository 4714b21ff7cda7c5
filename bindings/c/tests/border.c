/* What crosses the border of the C library: every function, right and wrong arguments, two threads.
 *
 * Prints a line per check; the first that fails ends the program with 1. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gemma.h"

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            printf("FAILED line %d: %s (last error: %s)\n", __LINE__, #condition, gemma_last_error());                 \
            exit(1);                                                                                                   \
        }                                                                                                              \
        printf("ok: %s\n", #condition);                                                                                \
    } while (0)

typedef struct {
    char bytes[8192];
    size_t len;
    int left; /* pieces to take before it ends the text; -1: all */
} text_buffer;

static int take(const char *text, size_t bytes, void *user) {
    text_buffer *buffer = user;
    if (strlen(text) != bytes || buffer->len + bytes >= sizeof buffer->bytes) {
        return 1;
    }
    memcpy(buffer->bytes + buffer->len, text, bytes + 1);
    buffer->len += bytes;
    return buffer->left > 0 && --buffer->left == 0;
}

static gemma_generate_options greedy(size_t max_tokens) {
    gemma_generate_options options = gemma_default_generate_options();
    options.max_tokens = max_tokens;
    options.temperature = 0;
    return options;
}

static bool says(const char *word) { return strstr(gemma_last_error(), word) != NULL; }

static void *in_thread(void *user) {
    const gemma_model *model = user;
    text_buffer *buffer = calloc(1, sizeof *buffer);
    buffer->left = -1;
    gemma_generate_options options = greedy(24);
    /* this thread has seen no failure */
    if (strcmp(gemma_last_error(), "") != 0 ||
        gemma_generate(model, "Once upon a time", &options, take, buffer) != GEMMA_OK) {
        free(buffer);
        return NULL;
    }
    return buffer;
}

int main(void) {
    CHECK(strcmp(gemma_last_error(), "") == 0);
    CHECK(strlen(gemma_version()) >= 5);

    /* names and options that are wrong */
    CHECK(gemma_load("./no/such/folder", NULL) == NULL && says("no such"));
    CHECK(gemma_load("demo:llama", NULL) == NULL && says("demo:paligemma"));
    CHECK(gemma_load("\xff\xfe", NULL) == NULL && says("UTF-8"));
    gemma_load_options wrong = {.precision = "f64"};
    CHECK(gemma_load(NULL, &wrong) == NULL && says("f64"));
    gemma_load_options lost = {.adapter = "./no/adapter"};
    CHECK(gemma_load(NULL, &lost) == NULL && says("no/adapter"));
    gemma_load_options many = {.threads = 100000};
    CHECK(gemma_load(NULL, &many) == NULL && says("threads"));

    gemma_load_options two = {.threads = 2, .backend = "ndarray"};
    gemma_model *model = gemma_load(NULL, &two);
    CHECK(model != NULL);
    gemma_load_options three = {.threads = 3};
    CHECK(gemma_load(NULL, &three) == NULL && says("2 threads already"));

    /* a text, whole and in part */
    gemma_generate_options options = gemma_default_generate_options();
    CHECK(options.max_tokens == 256 && options.temperature == 1 && options.top_k == 64 && !options.has_seed);
    CHECK(options.top_p > 0.94f && options.top_p < 0.96f && options.stop_count == 0 && !options.ignore_eos);
    static text_buffer whole = {.left = -1}, again = {.left = -1}, part = {.left = 3}, cut = {.left = -1};
    options = greedy(24);
    CHECK(gemma_generate(model, "Once upon a time", &options, take, &whole) == GEMMA_OK && whole.len > 20);
    CHECK(gemma_generate(model, "Once upon a time", &options, take, &again) == GEMMA_OK);
    CHECK(strcmp(whole.bytes, again.bytes) == 0);
    CHECK(gemma_generate(model, "Once upon a time", &options, take, &part) == GEMMA_STOPPED);
    CHECK(part.len > 0 && part.len < whole.len && strncmp(part.bytes, whole.bytes, part.len) == 0);
    const char *stops[] = {"named"};
    options = greedy(200);
    options.stops = stops;
    options.stop_count = 1;
    CHECK(gemma_generate(model, "Once upon a time", &options, take, &cut) == GEMMA_OK);
    CHECK(strstr(cut.bytes, "named") == NULL && strncmp(cut.bytes, whole.bytes, cut.len) == 0);

    /* the same seed gives the same text */
    static text_buffer first = {.left = -1}, second = {.left = -1};
    options = gemma_default_generate_options();
    options.max_tokens = 24;
    options.has_seed = true;
    options.seed = 7;
    CHECK(gemma_generate(model, "One", &options, take, &first) == GEMMA_OK);
    CHECK(gemma_generate(model, "One", &options, take, &second) == GEMMA_OK);
    CHECK(strcmp(first.bytes, second.bytes) == 0);

    /* a conversation */
    static text_buffer answer = {.left = -1};
    gemma_message messages[] = {{"user", "What is 2 + 3?"}};
    options = greedy(40);
    CHECK(gemma_chat(model, messages, 1, &options, take, &answer) == GEMMA_OK && answer.len > 0);
    gemma_message odd[] = {{"narrator", "Silence."}};
    CHECK(gemma_chat(model, odd, 1, NULL, take, &answer) == GEMMA_ERROR && says("narrator"));
    gemma_message half[] = {{"user", NULL}};
    CHECK(gemma_chat(model, half, 1, NULL, take, &answer) == GEMMA_ERROR && says("content"));
    gemma_model *images = gemma_load("demo:paligemma", NULL);
    CHECK(images != NULL);
    CHECK(gemma_chat(images, messages, 1, NULL, take, &answer) == GEMMA_ERROR && says("does not chat"));
    gemma_free(images);

    /* tokens and back */
    uint32_t tokens[64];
    ptrdiff_t count = gemma_tokenize(model, "Once upon a time", true, NULL, 0);
    CHECK(count > 1 && count < 64);
    CHECK(gemma_tokenize(model, "Once upon a time", true, tokens, 64) == count);
    CHECK(gemma_tokenize(model, "Once upon a time", false, tokens + 1, 63) == count - 1);
    char text[64];
    CHECK(gemma_detokenize(model, tokens, (size_t)count, text, sizeof text) == 16);
    CHECK(strcmp(text, "Once upon a time") == 0);
    CHECK(gemma_detokenize(model, tokens, (size_t)count, text, 5) == 16 && strcmp(text, "Once") == 0);
    CHECK(gemma_detokenize(model, NULL, 0, NULL, 0) == 0);

    /* nulls, texts that are not UTF-8, options outside their ranges */
    CHECK(gemma_generate(NULL, "x", NULL, take, &answer) == GEMMA_ERROR && says("model is NULL"));
    CHECK(gemma_generate(model, NULL, NULL, take, &answer) == GEMMA_ERROR && says("prompt is NULL"));
    CHECK(gemma_generate(model, "x", NULL, NULL, NULL) == GEMMA_ERROR && says("on_text is NULL"));
    CHECK(gemma_generate(model, "\xc3", NULL, take, &answer) == GEMMA_ERROR && says("UTF-8"));
    options = greedy(4);
    options.temperature = -1;
    CHECK(gemma_generate(model, "x", &options, take, &answer) == GEMMA_ERROR && says("temperature is -1"));
    options = greedy(4);
    options.stop_count = 1;
    CHECK(gemma_generate(model, "x", &options, take, &answer) == GEMMA_ERROR && says("stops is NULL"));
    CHECK(gemma_tokenize(model, "x", true, NULL, 4) == GEMMA_ERROR && says("tokens is NULL"));
    CHECK(gemma_tokenize(model, NULL, true, tokens, 4) == GEMMA_ERROR && says("text is NULL"));

    /* two threads, one model */
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, in_thread, model) == 0);
    }
    for (int i = 0; i < 2; i++) {
        text_buffer *buffer = NULL;
        CHECK(pthread_join(threads[i], (void **)&buffer) == 0 && buffer != NULL);
        CHECK(strcmp(buffer->bytes, whole.bytes) == 0);
        free(buffer);
    }
    gemma_free(model);
    gemma_free(NULL);
    printf("all passed\n");
    return 0;
}
