/* Continues a text with a model, as it is generated.
 *
 *     cargo build --release --manifest-path bindings/c/Cargo.toml
 *     cc -I bindings/c/include bindings/c/examples/generate.c -L bindings/target/release -lgemma_c -o generate
 *     LD_LIBRARY_PATH=bindings/target/release ./generate "Once upon a time"
 *     LD_LIBRARY_PATH=bindings/target/release ./generate "Once upon a time" google/gemma-2-2b */
#include <stdio.h>

#include "gemma.h"

static int print_text(const char *text, size_t bytes, void *user) {
    (void)user;
    fwrite(text, 1, bytes, stdout);
    fflush(stdout);
    return 0;
}

int main(int count, char **arguments) {
    const char *prompt = count > 1 ? arguments[1] : "Once upon a time";
    gemma_model *model = gemma_load(count > 2 ? arguments[2] : NULL, NULL);
    if (model == NULL) {
        fprintf(stderr, "error: %s\n", gemma_last_error());
        return 2;
    }
    gemma_generate_options options = gemma_default_generate_options();
    options.max_tokens = 40;
    options.temperature = 0;
    int result = gemma_generate(model, prompt, &options, print_text, NULL);
    if (result == GEMMA_ERROR) {
        fprintf(stderr, "error: %s\n", gemma_last_error());
    }
    printf("\n");
    gemma_free(model);
    return result == GEMMA_ERROR ? 2 : 0;
}
