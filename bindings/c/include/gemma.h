/* Gemma models for C: open one, generate, chat, tokenize.
 *
 *     gemma_model *model = gemma_load(NULL, NULL);
 *     gemma_generate(model, "Once upon a time", NULL, print_text, NULL);
 *     gemma_free(model);
 *
 * Errors. A function that fails returns NULL or GEMMA_ERROR, and gemma_last_error() says why in one line. No function
 * ends the program, and no failure of the library leaves it undefined.
 *
 * Ownership. The caller frees what gemma_load returns with gemma_free, and nothing else. Strings and arrays that are
 * passed in are read during the call only. Texts that are passed to a callback are valid until it returns.
 *
 * Threads. Any number of threads may use one model at the same time; gemma_free is called when none of them does. Errors
 * are kept per thread.
 *
 * Texts are UTF-8 and end with a zero byte. */
#ifndef GEMMA_H
#define GEMMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The text is complete: the model stopped, or a limit was reached. */
#define GEMMA_OK 0
/* The callback ended the text. */
#define GEMMA_STOPPED 1
/* It failed; see gemma_last_error(). */
#define GEMMA_ERROR (-1)

/* An opened model. */
typedef struct gemma_model gemma_model;

/* How a model is opened. All zeros are the defaults. */
typedef struct gemma_load_options {
    const char *precision; /* how weights are held: "f32", "bf16", "f16", "q8_0", "q4_0"; NULL: as in the file */
    const char *backend;   /* "ndarray", or another one that was compiled in; NULL: the best there is */
    const char *adapter;   /* the folder of a LoRA adapter in PEFT's format; NULL: none */
    size_t threads;        /* CPU threads of this process, chosen by the first call; 0: all cores */
    bool offline;          /* use only files that are on this machine */
} gemma_load_options;

/* How text is generated. Begin with gemma_default_generate_options(). */
typedef struct gemma_generate_options {
    size_t max_tokens;        /* most tokens to generate */
    float temperature;        /* 0 is greedy, 1 the model's distribution */
    size_t top_k;             /* sample from so many most probable tokens; 0: from all */
    float top_p;              /* nucleus sampling; 1: off */
    bool has_seed;            /* whether `seed` counts; a fresh one is drawn otherwise */
    uint64_t seed;            /* the same seed gives the same text */
    bool ignore_eos;          /* go on after the model's stop tokens */
    const char *const *stops; /* texts that end the generation; the text is cut before them */
    size_t stop_count;        /* how many there are */
} gemma_generate_options;

/* A message of a conversation. */
typedef struct gemma_message {
    const char *role;    /* "user", "assistant" or "system" */
    const char *content; /* what is said */
} gemma_message;

/* Takes the next piece of a text: whole characters, `bytes` bytes and a zero behind them. `user` is what was passed along.
 * A result other than 0 ends the text. It must return: neither longjmp nor an exception of C++ may leave it. */
typedef int (*gemma_on_text)(const char *text, size_t bytes, void *user);

/* The version of the library, such as "0.1.0". */
const char *gemma_version(void);

/* What the last failure on this thread was, in one line; "" before the first. Valid until the next failure on this
 * thread. */
const char *gemma_last_error(void);

/* Opens a model: a folder in Hugging Face format, a GGUF file, or a hub id, which is downloaded on first use. NULL is a
 * tiny built-in model; "demo:codegemma", "demo:recurrentgemma" and "demo:paligemma" are those of the other families.
 * `options` may be NULL. Returns NULL when it fails. */
gemma_model *gemma_load(const char *name, const gemma_load_options *options);

/* Closes a model. NULL is allowed. */
void gemma_free(gemma_model *model);

/* The library's defaults: 256 tokens, temperature 1, top_k 64, top_p 0.95. */
gemma_generate_options gemma_default_generate_options(void);

/* Continues a prompt. `options` may be NULL. Returns GEMMA_OK, GEMMA_STOPPED or GEMMA_ERROR. */
int gemma_generate(const gemma_model *model, const char *prompt, const gemma_generate_options *options,
                   gemma_on_text on_text, void *user);

/* Answers the last of `count` messages, in the model's chat format. As gemma_generate otherwise. */
int gemma_chat(const gemma_model *model, const gemma_message *messages, size_t count,
               const gemma_generate_options *options, gemma_on_text on_text, void *user);

/* The token ids of a text, with <bos> in front if `bos` is set. Writes at most `capacity` of them to `tokens` and returns
 * how many there are, or GEMMA_ERROR. `tokens` may be NULL when `capacity` is 0: so tokens are counted. */
ptrdiff_t gemma_tokenize(const gemma_model *model, const char *text, bool bos, uint32_t *tokens, size_t capacity);

/* The text of token ids, without control tokens. Writes at most `capacity` bytes to `text`, the zero at the end included
 * (as snprintf does; a text that does not fit is cut after a whole character), and returns how many bytes the whole text has
 * without the zero, or GEMMA_ERROR. `text` may be NULL when `capacity` is 0. */
ptrdiff_t gemma_detokenize(const gemma_model *model, const uint32_t *tokens, size_t count, char *text, size_t capacity);

#ifdef __cplusplus
}
#endif

#endif
