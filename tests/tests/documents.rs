//! What the documents repeat of the code is what the code says.

use std::path::Path;

#[test]
fn the_table_of_models_is_the_catalogue() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/models.md");
    let text = std::fs::read_to_string(page).expect("docs/models.md");
    let table = gemma_auto::models_table().expect("a backend");
    assert!(text.contains(&table), "docs/models.md is out of date; put the output of `gemma models --markdown` there");
}
