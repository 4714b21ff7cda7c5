//! The six plots: something out of reach, a lesson, the way home, a cake, a seed, and a kindness that comes back.
//!
//! What belongs together is drawn together, as one row of a table: a thing in a tree is fetched by somebody who
//! flies, honey comes from the bee, and whoever was cold gets the scarf.

use super::page::{Page, with_article};
use crate::random::Random;

const COLORS: [&str; 5] = ["red", "blue", "green", "yellow", "golden"];

/// Continues the story on `page`, whose hero and place are already introduced.
pub(super) fn tell(page: &mut Page, random: &mut Random) {
    match random.below(6) {
        0 => out_of_reach(page, random),
        1 => the_lesson(page, random),
        2 => the_way_home(page, random),
        3 => the_cake(page, random),
        4 => the_seed(page, random),
        _ => kindness_returns(page, random),
    }
}

/// Introduces the helper as `{a helper}` ("an old owl") and later `{helper}` ("owl").
fn set_helper(page: &mut Page, random: &mut Random, animals: &[&str]) {
    let animal = random.pick(animals);
    let nature = random.pick(&["old", "friendly", "kind", "little"]);
    page.set("a helper", &with_article(&format!("{nature} {animal}")));
    page.set("helper", animal);
}

fn out_of_reach(page: &mut Page, random: &mut Random) {
    // What, how it got there, where it is, who can go there, and how.
    let (things, mishap, spot, helpers, fetching) = random.pick(&[
        (
            ["kite", "hat", "ball"],
            "the wind carried the {thing} up into a tall tree",
            "in the tree",
            ["owl", "crow", "bird"],
            "flew to the top of the tree",
        ),
        (
            ["boat", "hat", "ball"],
            "the {thing} fell into the deep water",
            "in the water",
            ["duck", "frog", "fish"],
            "swam down into the deep water",
        ),
        (
            ["key", "bell", "ball"],
            "the {thing} fell into a dark hole",
            "in the hole",
            ["mole", "squirrel", "snail"],
            "climbed down into the dark hole",
        ),
    ]);
    let thing = random.pick(&things);
    let color = random.pick(&COLORS);
    page.set("thing", thing);
    page.set("color", color);
    page.set("a thing", &with_article(&format!("{color} {thing}")));
    page.set("spot", spot);
    set_helper(page, random, &helpers);

    page.say_one(
        random,
        &[
            "{She} had {a thing} and loved it very much.",
            "More than anything, {she} loved {his} {color} {thing}.",
            "{His} mother gave {her} {a thing}.",
        ],
    );
    page.say(&format!("One {} day, {mishap}.", random.pick(&["windy", "sunny", "cold"])));
    page.say_one(
        random,
        &["{Name} tried, but {she} could not reach it.", "It was too far away, and {Name} began to cry."],
    );
    page.say("Then {a helper} came by.");
    page.say_one(
        random,
        &[
            "\"Why are you sad?\" asked the {helper}. \"My {thing} is {spot},\" said {Name}.",
            "\"Can you help me?\" asked {Name}. \"My {thing} is {spot}.\"",
        ],
    );
    page.say(&format!("The {{helper}} {fetching} and brought the {{thing}} back."));
    page.say_one(random, &["\"Thank you!\" said {Name}.", "{Name} was so happy that {she} hugged the {helper}."]);
    page.say_one(
        random,
        &[
            "From that day on, they played with the {color} {thing} every day.",
            "{She} never lost the {color} {thing} again.",
            "That night, {she} slept with the {color} {thing} in {his} bed.",
        ],
    );
}

fn the_lesson(page: &mut Page, random: &mut Random) {
    // What to learn, its past tense, the teachers, the fear, the first try.
    let (skill, did, teachers, fear, first_try) = random.pick(&[
        ("swim", "swam", ["duck", "frog", "fish"], "the deep water", "{she} got water in {his} nose"),
        ("climb", "climbed", ["squirrel", "bird", "owl"], "tall trees", "{she} fell into the grass"),
        ("sing", "sang", ["bird", "bee", "frog"], "making a sound", "{she} made only a tiny sound"),
        ("jump", "jumped", ["frog", "squirrel", "horse"], "falling", "{she} fell into the mud"),
    ]);
    page.set("skill", skill);
    page.set("did", did);
    page.set("fear", fear);
    set_helper(page, random, &teachers);

    page.say_one(
        random,
        &[
            "{She} wanted to learn how to {skill}, but {she} was afraid of {fear}.",
            "{Name} wanted to {skill} more than anything, but {she} was afraid of {fear}.",
        ],
    );
    page.say_one(random, &["One day, {she} met {a helper}.", "One sunny day, {a helper} came by."]);
    page.say("\"Can you teach me how to {skill}?\" asked {Name}.");
    page.say_one(
        random,
        &[
            "\"Yes, I can,\" said the {helper}. \"Do what I do.\"",
            "\"Of course,\" said the {helper}. \"Do not be afraid.\"",
        ],
    );
    page.say(&format!("On the first day, {first_try}."));
    page.say_one(
        random,
        &[
            "On the next day, {she} tried again. Soon {she} could {skill} like the {helper}!",
            "But {she} tried again every day, and soon {she} {did} better than the {helper}!",
        ],
    );
    page.say_one(
        random,
        &["From that day on, {Name} {did} with the {helper} every day.", "{Name} was never afraid of {fear} again."],
    );
}

fn the_way_home(page: &mut Page, random: &mut Random) {
    let (animal, moved) =
        random.pick(&[("firefly", "flew"), ("owl", "flew"), ("crow", "flew"), ("squirrel", "ran"), ("horse", "ran")]);
    page.set("moved", moved);
    set_helper(page, random, &[animal]);
    page.set("past", random.pick(&["the old farm", "the big tree", "the green hill"]));

    page.say_one(
        random,
        &[
            "One cold night, {she} went too far and got lost.",
            "One day, {she} went out to look for flowers and got lost.",
        ],
    );
    page.say_one(
        random,
        &["It was dark, and {Name} could not find the way home.", "Soon it was dark, and {Name} began to cry."],
    );
    page.say("Then {she} met {a helper}.");
    page.say_one(
        random,
        &[
            "\"Do not be afraid,\" said the {helper}. \"I know the way.\"",
            "\"Can you help me?\" asked {Name}. \"Yes, I can,\" said the {helper}.",
        ],
    );
    page.say("The {helper} {moved} past {past}, and {Name} ran after it until {she} saw {his} house.");
    page.say_one(random, &["{His} mother was waiting at the door.", "{His} mother opened the door and hugged {her}."]);
    page.say_one(
        random,
        &[
            "From that day on, {Name} put a light in the window every night for the {helper}.",
            "{Name} thanked the {helper} and never got lost again.",
        ],
    );
}

fn the_cake(page: &mut Page, random: &mut Random) {
    // What is missing, who has it, the price, and how it is paid.
    let (missing, animal, price, paid) = random.pick(&[
        ("honey", "bee", "a flower", "found a yellow flower"),
        ("milk", "cow", "fresh grass", "found fresh green grass"),
        ("eggs", "hen", "some corn", "found some yellow corn"),
        ("nuts", "squirrel", "a song", "sang a happy song"),
        ("apples", "horse", "a new hat", "made a big red hat"),
    ]);
    page.set("missing", missing);
    page.set("price", price);
    set_helper(page, random, &[animal]);
    page.set("guest", random.pick(&["mother", "father", "friends"]));

    page.say_one(
        random,
        &[
            "One day, {she} wanted to bake a cake for {his} {guest}, but {she} had no {missing}.",
            "{She} wanted to bake a cake for {his} {guest}, but {she} could not find any {missing}.",
        ],
    );
    page.say("So {Name} went to {a helper} and asked, \"May I have some {missing}?\"");
    page.say("\"Yes,\" said the {helper}, \"if you give me {price}.\"");
    let gift = if price == "a song" { "for the {helper}" } else { "and gave it to the {helper}" };
    page.say(&format!("{{Name}} {paid} {gift}."));
    page.say_one(
        random,
        &[
            "The {helper} gave {her} the {missing}, and {Name} baked a big cake.",
            "Soon {she} had the {missing} and baked the cake.",
        ],
    );
    page.say_one(random, &["{His} {guest} loved it.", "\"What a good cake!\" said {his} {guest}."]);
    page.say_one(
        random,
        &["And {Name} gave the last piece to the {helper}.", "And {Name} gave some of the cake to the {helper}."],
    );
}

fn the_seed(page: &mut Page, random: &mut Random) {
    set_helper(page, random, &["snail", "owl", "mole", "bee"]);
    page.set("color", random.pick(&COLORS));
    page.set("plant", random.pick(&["flower", "tree"]));

    page.say_one(
        random,
        &["One day, {she} found a tiny seed in the grass.", "{His} father gave {her} a tiny {color} seed."],
    );
    page.say("{Name} put the seed in the garden and gave it water every day.");
    page.say_one(random, &["But nothing happened, and {Name} was sad.", "But nothing came up."]);
    page.say_one(
        random,
        &[
            "Then {a helper} came by. \"Do not be sad,\" said the {helper}. \"Good things take time.\"",
            "{She} asked {a helper} for help. \"Good things take time,\" said the {helper}.",
        ],
    );
    page.say_one(random, &["So {Name} waited all winter.", "So {Name} waited and waited."]);
    page.say("One morning, there was a big {plant} in the garden, with {color} leaves.");
    page.say_one(
        random,
        &["\"You were right!\" said {Name} to the {helper}.", "{Name} was so happy that {she} sang a song."],
    );
    page.say_one(
        random,
        &[
            "From that day on, {Name} and the {helper} sat under the {plant} every day.",
            "When the {plant} made new seeds, {Name} gave the first seed to the {helper}.",
        ],
    );
}

fn kindness_returns(page: &mut Page, random: &mut Random) {
    let (state, gift, kept) = random.pick(&[
        ("hungry", "some bread", "bread"),
        ("hungry", "a big apple", "apple"),
        ("cold", "a warm hat", "hat"),
        ("cold", "a blue coat", "coat"),
    ]);
    let (trouble, rescue) = random.pick(&[
        ("fell into a deep hole", "came and helped {her} out of the hole"),
        ("lost the key to {his} house", "came and found the key in the grass"),
        ("fell into the lake", "came and took {her} out of the water"),
    ]);
    page.set("state", state);
    page.set("gift", gift);
    page.set("kept", kept);
    set_helper(page, random, &["horse", "duck", "squirrel", "crow"]);

    page.say_one(
        random,
        &[
            "One day, {she} met {a helper} who was {state}.",
            "One cold day, {a helper} came to {his} house. \"I am so {state},\" said the {helper}.",
        ],
    );
    page.say("{Name} gave the {helper} {gift}.");
    page.say_one(
        random,
        &["\"Thank you,\" said the {helper}. \"One day I will help you too.\"", "\"You are kind,\" said the {helper}."],
    );
    page.say(&format!("The next {}, {{Name}} {trouble}.", random.pick(&["day", "morning", "winter"])));
    page.say(&format!("Soon the {{helper}} {rescue}."));
    page.say_one(
        random,
        &[
            "\"You gave me {gift}, and now I help you,\" said the {helper}.",
            "\"You were kind to me when I was {state},\" said the {helper}.",
        ],
    );
    page.say_one(
        random,
        &[
            "From that day on, {Name} and the {helper} were best friends.",
            "{Name} hugged the {helper}, and they were best friends.",
            "And so the {kept} came back as a new friend.",
        ],
    );
}
