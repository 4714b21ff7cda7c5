//! The examples run, with the demo model.

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/complete.rs"]
mod complete;
#[allow(dead_code, unreachable_pub)]
#[path = "../examples/infill.rs"]
mod infill;
#[allow(dead_code, unreachable_pub)]
#[path = "../examples/typing.rs"]
mod typing;

#[test]
fn the_examples_run() {
    infill::run(None).unwrap();
    complete::run(None, "def sum_prices(prices):\n").unwrap();
    typing::run(None, None).unwrap();
}
