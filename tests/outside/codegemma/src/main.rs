//! Fill-in-the-middle with two files of context: with the crate `codegemma` alone.

use codegemma::{File, GenerateOptions, Infill, InfillOptions, Order, default_device};

fn main() -> Result<(), codegemma::Error> {
    let model = codegemma::demo(&default_device()?)?;
    let hole = Infill {
        path: Some("prices.py".to_owned()),
        context: vec![
            File { path: "a.py".to_owned(), text: "def count_prices(prices):\n    return len(prices)\n".to_owned() },
            File { path: "b.py".to_owned(), text: "def first_item(items):\n    return items[0]\n".to_owned() },
        ],
        ..Infill::new("def sum_prices(prices):\n    total = 0\n    for price in prices:\n        ", "\n    return total\n")
    };
    let options = InfillOptions { generate: GenerateOptions::greedy(32), order: Order::Spm, ..InfillOptions::default() };
    let filled = model.infill(&hole, &options)?;
    println!("{} ({:?}, {:.3} per token)", filled.text, filled.finish_reason, filled.mean_log_prob);
    assert!(filled.text.contains("price"), "the demo fills holes in short functions: {:?}", filled.text);
    Ok(())
}
