//! Small Python and JavaScript files from a table of recipes.
//!
//! A recipe is a function in both languages with blanks for what it works on. Every blank occurs on more than one line,
//! so that whichever line is taken away, the others say what stood there: the name of a parameter, the noun, the name of
//! the result. That is what the model has to learn, and what a held-out function asks of it.

use super::is_held_out;
use super::page::capitalized;
use crate::random::Random;

/// Both languages of the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// Snake case, a docstring, blocks by indentation.
    Python,
    /// Camel case, a comment above, blocks in braces.
    JavaScript,
}

impl Language {
    /// The ending of a file's name.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Python => "py",
            Self::JavaScript => "js",
        }
    }
}

/// A function that the generator wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The language it is written in.
    pub language: Language,
    /// What it works on, in the plural: the name of its file.
    pub noun: &'static str,
    /// Its text, which ends with a line break.
    pub text: String,
}

/// What functions work on: one, and many.
const NOUNS: [(&str, &str); 24] = [
    ("price", "prices"),
    ("score", "scores"),
    ("age", "ages"),
    ("weight", "weights"),
    ("size", "sizes"),
    ("point", "points"),
    ("cost", "costs"),
    ("number", "numbers"),
    ("value", "values"),
    ("item", "items"),
    ("width", "widths"),
    ("length", "lengths"),
    ("word", "words"),
    ("name", "names"),
    ("title", "titles"),
    ("color", "colors"),
    ("key", "keys"),
    ("label", "labels"),
    ("token", "tokens"),
    ("letter", "letters"),
    ("city", "cities"),
    ("user", "users"),
    ("file", "files"),
    ("node", "nodes"),
];

/// Blanks besides the noun: what may stand there.
const BLANKS: [(&str, &[&str]); 4] = [
    ("sum", &["total", "result", "answer"]),
    ("list", &["result", "found", "output"]),
    ("best", &["best", "top", "winner"]),
    ("limit", &["limit", "bound", "wanted", "other"]),
];

/// A function in both languages. `{one}` and `{many}` are the noun, with a capital in JavaScript names; the others are
/// [`BLANKS`]. The first line of each is what the function does, in words.
struct Recipe {
    name: &'static str,
    about: &'static str,
    parameters: &'static str,
    python: &'static [&'static str],
    javascript: &'static [&'static str],
}

const RECIPES: [Recipe; 22] = [
    Recipe {
        name: "sum_{many}",
        about: "Return the sum of the {many}.",
        parameters: "{many}",
        python: &["{sum} = 0", "for {one} in {many}:", "    {sum} += {one}", "return {sum}"],
        javascript: &["let {sum} = 0;", "for (const {one} of {many}) {", "    {sum} += {one};", "}", "return {sum};"],
    },
    Recipe {
        name: "multiply_{many}",
        about: "Return the product of the {many}.",
        parameters: "{many}",
        python: &["{sum} = 1", "for {one} in {many}:", "    {sum} *= {one}", "return {sum}"],
        javascript: &["let {sum} = 1;", "for (const {one} of {many}) {", "    {sum} *= {one};", "}", "return {sum};"],
    },
    Recipe {
        name: "largest_{one}",
        about: "Return the largest of the {many}.",
        parameters: "{many}",
        python: &[
            "{best} = {many}[0]",
            "for {one} in {many}:",
            "    if {one} > {best}:",
            "        {best} = {one}",
            "return {best}",
        ],
        javascript: &[
            "let {best} = {many}[0];",
            "for (const {one} of {many}) {",
            "    if ({one} > {best}) {",
            "        {best} = {one};",
            "    }",
            "}",
            "return {best};",
        ],
    },
    Recipe {
        name: "smallest_{one}",
        about: "Return the smallest of the {many}.",
        parameters: "{many}",
        python: &[
            "{best} = {many}[0]",
            "for {one} in {many}:",
            "    if {one} < {best}:",
            "        {best} = {one}",
            "return {best}",
        ],
        javascript: &[
            "let {best} = {many}[0];",
            "for (const {one} of {many}) {",
            "    if ({one} < {best}) {",
            "        {best} = {one};",
            "    }",
            "}",
            "return {best};",
        ],
    },
    Recipe {
        name: "count_{many}_above",
        about: "Count the {many} above the {limit}.",
        parameters: "{many}, {limit}",
        python: &["count = 0", "for {one} in {many}:", "    if {one} > {limit}:", "        count += 1", "return count"],
        javascript: &[
            "let count = 0;",
            "for (const {one} of {many}) {",
            "    if ({one} > {limit}) {",
            "        count += 1;",
            "    }",
            "}",
            "return count;",
        ],
    },
    Recipe {
        name: "count_{many}_below",
        about: "Count the {many} below the {limit}.",
        parameters: "{many}, {limit}",
        python: &["count = 0", "for {one} in {many}:", "    if {one} < {limit}:", "        count += 1", "return count"],
        javascript: &[
            "let count = 0;",
            "for (const {one} of {many}) {",
            "    if ({one} < {limit}) {",
            "        count += 1;",
            "    }",
            "}",
            "return count;",
        ],
    },
    Recipe {
        name: "keep_{many}_above",
        about: "Return the {many} above the {limit}.",
        parameters: "{many}, {limit}",
        python: &[
            "{list} = []",
            "for {one} in {many}:",
            "    if {one} > {limit}:",
            "        {list}.append({one})",
            "return {list}",
        ],
        javascript: &[
            "const {list} = [];",
            "for (const {one} of {many}) {",
            "    if ({one} > {limit}) {",
            "        {list}.push({one});",
            "    }",
            "}",
            "return {list};",
        ],
    },
    Recipe {
        name: "drop_{many}_above",
        about: "Return the {many} up to the {limit}.",
        parameters: "{many}, {limit}",
        python: &[
            "{list} = []",
            "for {one} in {many}:",
            "    if {one} <= {limit}:",
            "        {list}.append({one})",
            "return {list}",
        ],
        javascript: &[
            "const {list} = [];",
            "for (const {one} of {many}) {",
            "    if ({one} <= {limit}) {",
            "        {list}.push({one});",
            "    }",
            "}",
            "return {list};",
        ],
    },
    Recipe {
        name: "double_{many}",
        about: "Return each of the {many} times two.",
        parameters: "{many}",
        python: &["{list} = []", "for {one} in {many}:", "    {list}.append({one} * 2)", "return {list}"],
        javascript: &[
            "const {list} = [];",
            "for (const {one} of {many}) {",
            "    {list}.push({one} * 2);",
            "}",
            "return {list};",
        ],
    },
    Recipe {
        name: "square_{many}",
        about: "Return the square of each of the {many}.",
        parameters: "{many}",
        python: &["{list} = []", "for {one} in {many}:", "    {list}.append({one} * {one})", "return {list}"],
        javascript: &[
            "const {list} = [];",
            "for (const {one} of {many}) {",
            "    {list}.push({one} * {one});",
            "}",
            "return {list};",
        ],
    },
    Recipe {
        name: "add_to_{many}",
        about: "Return each of the {many} plus the {limit}.",
        parameters: "{many}, {limit}",
        python: &["{list} = []", "for {one} in {many}:", "    {list}.append({one} + {limit})", "return {list}"],
        javascript: &[
            "const {list} = [];",
            "for (const {one} of {many}) {",
            "    {list}.push({one} + {limit});",
            "}",
            "return {list};",
        ],
    },
    Recipe {
        name: "has_{one}",
        about: "Tell whether the {limit} is one of the {many}.",
        parameters: "{many}, {limit}",
        python: &["for {one} in {many}:", "    if {one} == {limit}:", "        return True", "return False"],
        javascript: &[
            "for (const {one} of {many}) {",
            "    if ({one} === {limit}) {",
            "        return true;",
            "    }",
            "}",
            "return false;",
        ],
    },
    Recipe {
        name: "reverse_{many}",
        about: "Return the {many} from the last to the first.",
        parameters: "{many}",
        python: &["{list} = []", "for {one} in {many}:", "    {list}.insert(0, {one})", "return {list}"],
        javascript: &[
            "const {list} = [];",
            "for (const {one} of {many}) {",
            "    {list}.unshift({one});",
            "}",
            "return {list};",
        ],
    },
    Recipe {
        name: "print_{many}",
        about: "Print each of the {many} and count them.",
        parameters: "{many}",
        python: &["count = 0", "for {one} in {many}:", "    print({one})", "    count += 1", "return count"],
        javascript: &[
            "let count = 0;",
            "for (const {one} of {many}) {",
            "    console.log({one});",
            "    count += 1;",
            "}",
            "return count;",
        ],
    },
    Recipe {
        name: "average_{one}",
        about: "Return the average of the {many}.",
        parameters: "{many}",
        python: &["{sum} = 0", "for {one} in {many}:", "    {sum} += {one}", "return {sum} / len({many})"],
        javascript: &[
            "let {sum} = 0;",
            "for (const {one} of {many}) {",
            "    {sum} += {one};",
            "}",
            "return {sum} / {many}.length;",
        ],
    },
    Recipe {
        name: "first_{one}",
        about: "Return the first of the {many}.",
        parameters: "{many}",
        python: &["{best} = {many}[0]", "return {best}"],
        javascript: &["const {best} = {many}[0];", "return {best};"],
    },
    Recipe {
        name: "is_larger_{one}",
        about: "Tell whether the {one} is above the {limit}.",
        parameters: "{one}, {limit}",
        python: &["if {one} > {limit}:", "    return True", "return False"],
        javascript: &["if ({one} > {limit}) {", "    return true;", "}", "return false;"],
    },
    Recipe {
        name: "clamp_{one}",
        about: "Return the {one} or the {limit} if it is above.",
        parameters: "{one}, {limit}",
        python: &["if {one} > {limit}:", "    return {limit}", "return {one}"],
        javascript: &["if ({one} > {limit}) {", "    return {limit};", "}", "return {one};"],
    },
    Recipe {
        name: "upper_{many}",
        about: "Return the {many} in upper case.",
        parameters: "{many}",
        python: &["{list} = []", "for {one} in {many}:", "    {list}.append({one}.upper())", "return {list}"],
        javascript: &[
            "const {list} = [];",
            "for (const {one} of {many}) {",
            "    {list}.push({one}.toUpperCase());",
            "}",
            "return {list};",
        ],
    },
    Recipe {
        name: "lower_{many}",
        about: "Return the {many} in lower case.",
        parameters: "{many}",
        python: &["{list} = []", "for {one} in {many}:", "    {list}.append({one}.lower())", "return {list}"],
        javascript: &[
            "const {list} = [];",
            "for (const {one} of {many}) {",
            "    {list}.push({one}.toLowerCase());",
            "}",
            "return {list};",
        ],
    },
    Recipe {
        name: "get_{one}",
        about: "Return the {one} of the {limit}.",
        parameters: "{limit}",
        python: &["{best} = {limit}[\"{one}\"]", "return {best}"],
        javascript: &["const {best} = {limit}.{one};", "return {best};"],
    },
    Recipe {
        name: "set_{one}",
        about: "Set the {one} of the {limit}.",
        parameters: "{limit}, {one}",
        python: &["{limit}[\"{one}\"] = {one}", "return {limit}"],
        javascript: &["{limit}.{one} = {one};", "return {limit};"],
    },
];

impl Function {
    /// Draws any function, held out or not.
    fn draw(random: &mut Random, noun: (&'static str, &'static str)) -> Self {
        let recipe = &RECIPES[random.below(RECIPES.len())];
        let language = if random.chance(50) { Language::Python } else { Language::JavaScript };
        let mut words = vec![("one", noun.0), ("many", noun.1)];
        words.extend(BLANKS.map(|(blank, choices)| (blank, random.pick(choices))));
        let fill = |text: &str| {
            words.iter().fold(text.to_owned(), |text, (blank, word)| text.replace(&format!("{{{blank}}}"), word))
        };
        let (name, about, parameters) = (fill(recipe.name), fill(recipe.about), fill(recipe.parameters));
        let text = match language {
            Language::Python => {
                let body = recipe.python.iter().map(|line| format!("    {}\n", fill(line)));
                format!("def {name}({parameters}):\n    \"\"\"{about}\"\"\"\n{}", body.collect::<String>())
            }
            Language::JavaScript => {
                let body = recipe.javascript.iter().map(|line| format!("    {}\n", fill(line)));
                let name = camel_case(&name);
                format!("// {about}\nfunction {name}({parameters}) {{\n{}}}\n", body.collect::<String>())
            }
        };
        Self { language, noun: noun.1, text }
    }

    /// A function to learn from.
    pub fn training(random: &mut Random) -> Self {
        let noun = random.pick(&NOUNS);
        Self::like(random, noun, |_| true)
    }

    /// A function to learn from, of the same language and about the same thing as this one.
    pub fn companion(&self, random: &mut Random) -> Self {
        let noun = NOUNS.into_iter().find(|noun| noun.1 == self.noun).expect("a function is about a noun of the table");
        Self::like(random, noun, |other| other.language == self.language && other.text != self.text)
    }

    fn like(random: &mut Random, noun: (&'static str, &'static str), fits: impl Fn(&Self) -> bool) -> Self {
        loop {
            let function = Self::draw(random, noun);
            if fits(&function) && !function.is_held_out() {
                return function;
            }
        }
    }

    /// Whether it is kept from training: a rule on its text, so the same for every seed.
    pub fn is_held_out(&self) -> bool {
        is_held_out(&self.text)
    }

    /// The path of the file that it stands in.
    pub fn path(&self) -> String {
        format!("{}.{}", self.noun, self.language.ending())
    }
}

/// `snake_case` as `camelCase`.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| name + &capitalized(word))
}

/// Functions that the training never sees.
pub fn held_out_functions(count: usize, seed: u64) -> Vec<Function> {
    let mut random = Random::new(seed ^ 0x0c0d_e0c0_de0c_0de0);
    let mut functions: Vec<Function> = Vec::with_capacity(count);
    while functions.len() < count {
        let noun = random.pick(&NOUNS);
        let function = Function::draw(&mut random, noun);
        if function.is_held_out() && !functions.contains(&function) {
            functions.push(function);
        }
    }
    functions
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn training_never_meets_a_held_out_function() {
        let tested: BTreeSet<String> = held_out_functions(300, 1).into_iter().map(|function| function.text).collect();
        let mut random = Random::new(5);
        for _ in 0..20_000 {
            let function = Function::training(&mut random);
            assert!(!tested.contains(&function.text), "{}", function.text);
            assert!(!tested.contains(&function.companion(&mut random).text));
        }
    }

    #[test]
    fn every_blank_is_filled_and_every_bracket_closed() {
        let mut random = Random::new(6);
        for _ in 0..5_000 {
            let function = Function::training(&mut random);
            let text = &function.text;
            assert!(text.ends_with('\n') && text.is_ascii(), "{text}");
            for (open, close) in [('(', ')'), ('[', ']'), ('{', '}')] {
                assert_eq!(text.matches(open).count(), text.matches(close).count(), "{text}");
            }
            if function.language == Language::Python {
                assert!(!text.contains('{'), "{text}");
            }
        }
    }

    #[test]
    fn names_follow_the_language() {
        assert_eq!(camel_case("count_prices_above"), "countPricesAbove");
        let functions = held_out_functions(200, 2);
        let both: BTreeSet<&str> = functions.iter().map(|function| function.language.ending()).collect();
        assert_eq!(both.len(), 2);
        for function in &functions {
            let name = function.text.split_once('(').expect("a function has parameters").0;
            assert_eq!(name.contains('_'), function.language == Language::Python, "{name}");
        }
    }
}
