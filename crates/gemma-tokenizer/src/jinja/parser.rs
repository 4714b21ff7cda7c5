//! Tokens to a tree, with limits: a template is a program of strangers.

use std::sync::Arc;

use super::budget::Fault;
use super::lexer::{Token, tokens};
use super::syntax::{Arguments, Comparison, Expr, Macro, Name, Node, Operator, Postfix, Sign, Target};

/// Longest template, in bytes. Released ones have at most some tens of thousands.
const MAX_SOURCE: usize = 1 << 20;
/// Most operators, filters, subscripts or signs in one chain, and most `elif`s of one `if`.
const MAX_CHAIN: usize = 1000;
/// Most brackets and conditions inside each other in an expression.
const MAX_BRACKETS: usize = 60;
/// Most blocks inside each other.
const MAX_BLOCKS: usize = 60;

/// Parses a template.
pub(super) fn parse(source: &str) -> Result<Vec<Node>, Fault> {
    if source.len() > MAX_SOURCE {
        return Err(Fault::Limit(format!("it has {} bytes, more than {MAX_SOURCE}", source.len())));
    }
    let mut parser = Parser { tokens: tokens(source)?, at: 0, brackets: 0, blocks: 0, loops: 0 };
    let (nodes, end) = parser.nodes(&[])?;
    debug_assert!(end.is_empty());
    Ok(nodes)
}

struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
    brackets: usize,
    blocks: usize,
    loops: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].0.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn fail<T>(&self, reason: impl std::fmt::Display) -> Result<T, Fault> {
        Fault::failed(format!("{reason} (line {})", self.tokens[self.at].1))
    }

    /// A limit of the source that is passed.
    fn too_deep<T>(&self, what: impl std::fmt::Display) -> Result<T, Fault> {
        Err(Fault::Limit(format!("too deep: {what} (line {})", self.tokens[self.at].1)))
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(found) if *found == sign)
    }

    fn takes(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        if found {
            self.next();
        }
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), Fault> {
        if self.takes(sign) { Ok(()) } else { self.fail(format!("expected {sign}, found {}", shown(self.peek()))) }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Name(name) if name == word)
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.next();
        }
        found
    }

    fn name(&mut self) -> Result<Name, Fault> {
        match self.next() {
            Token::Name(name) => Ok(name.into()),
            other => self.fail(format!("expected a name, found {}", shown(&other))),
        }
    }

    fn close_block(&mut self) -> Result<(), Fault> {
        match self.next() {
            Token::CloseBlock => Ok(()),
            other => self.fail(format!("expected the end of the tag, found {}", shown(&other))),
        }
    }

    /// Nodes up to a block whose name is in `ends`, which is read up to and without its arguments.
    fn nodes(&mut self, ends: &[&str]) -> Result<(Vec<Node>, String), Fault> {
        let mut nodes = Vec::new();
        loop {
            match self.next() {
                Token::Text(text) => nodes.push(Node::Text(text.into())),
                Token::OpenOutput => {
                    nodes.push(Node::Output(self.tuple(true)?));
                    match self.next() {
                        Token::CloseOutput => {}
                        other => return self.fail(format!("expected }}}}, found {}", shown(&other))),
                    }
                }
                Token::OpenBlock => {
                    let name = self.name()?;
                    if ends.contains(&&*name) {
                        return Ok((nodes, name.to_string()));
                    }
                    self.blocks += 1;
                    if self.blocks > MAX_BLOCKS {
                        return self.too_deep(format!("more than {MAX_BLOCKS} blocks inside each other"));
                    }
                    nodes.push(self.block(&name)?);
                    self.blocks -= 1;
                }
                Token::End if ends.is_empty() => return Ok((nodes, String::new())),
                Token::End => return self.fail(format!("expected {}", ends[ends.len() - 1])),
                other => return self.fail(format!("unexpected {}", shown(&other))),
            }
        }
    }

    /// Nodes up to `end`, whose tag is read.
    fn body(&mut self, end: &str) -> Result<Vec<Node>, Fault> {
        self.close_block()?;
        let (nodes, _) = self.nodes(&[end])?;
        // `{% endblock name %}` is allowed for some
        if matches!(self.peek(), Token::Name(_)) {
            self.next();
        }
        self.close_block()?;
        Ok(nodes)
    }

    fn block(&mut self, name: &str) -> Result<Node, Fault> {
        Ok(match name {
            "if" => return self.conditional(),
            "for" => return self.repeat(),
            "set" => return self.set(),
            "macro" => {
                let name = self.name()?;
                let parameters = self.parameters()?;
                let body = self.outside_loops(|parser| parser.body("endmacro"))?;
                Node::Macro(Arc::new(Macro { name, parameters, body }))
            }
            "call" => {
                let parameters = if self.is("(") { self.parameters()? } else { Vec::new() };
                let callee = self.expression()?;
                let body = self.outside_loops(|parser| parser.body("endcall"))?;
                Node::Call(Arc::new(Macro { name: "caller".into(), parameters, body }), callee)
            }
            "filter" => {
                let mut filters = vec![self.filter()?];
                while self.takes("|") {
                    filters.push(self.filter()?);
                    self.check_chain(filters.len())?;
                }
                Node::Filter(filters, self.body("endfilter")?)
            }
            "with" => {
                let mut values = Vec::new();
                while !matches!(self.peek(), Token::CloseBlock) {
                    if !values.is_empty() {
                        self.expect(",")?;
                    }
                    let name = self.name()?;
                    self.expect("=")?;
                    values.push((name, self.expression()?));
                    self.check_chain(values.len())?;
                }
                Node::With(values, self.body("endwith")?)
            }
            // what TRL marks as the assistant's text; it changes no prompt
            "generation" => Node::With(Vec::new(), self.body("endgeneration")?),
            "break" | "continue" => {
                if self.loops == 0 {
                    return self.fail(format!("{name} outside of a loop"));
                }
                self.close_block()?;
                if name == "break" { Node::Break } else { Node::Continue }
            }
            _ => return self.fail(format!("unknown tag {name:?}")),
        })
    }

    fn outside_loops<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        let loops = std::mem::take(&mut self.loops);
        let result = read(self);
        self.loops = loops;
        result
    }

    fn conditional(&mut self) -> Result<Node, Fault> {
        let mut arms = Vec::new();
        loop {
            let condition = self.tuple(true)?;
            self.close_block()?;
            let (body, end) = self.nodes(&["elif", "else", "endif"])?;
            arms.push((condition, body));
            if arms.len() > MAX_CHAIN {
                return self.too_deep(format!("more than {MAX_CHAIN} conditions of one if"));
            }
            if end == "elif" {
                continue;
            }
            let otherwise = if end == "else" { self.body("endif")? } else { Vec::new() };
            if end == "endif" {
                self.close_block()?;
            }
            return Ok(Node::If(arms, otherwise));
        }
    }

    fn repeat(&mut self) -> Result<Node, Fault> {
        let bracket = self.takes("(");
        let mut targets = vec![self.name()?];
        while self.takes(",") {
            if !matches!(self.peek(), Token::Name(_)) || self.is_word("in") {
                break;
            }
            targets.push(self.name()?);
            self.check_chain(targets.len())?;
        }
        if bracket {
            self.expect(")")?;
        }
        if !self.takes_word("in") {
            return self.fail("expected in");
        }
        let iterable = self.tuple(false)?;
        let condition = if self.takes_word("if") { Some(self.expression()?) } else { None };
        if self.is_word("recursive") {
            return self.fail("recursive loops are not supported");
        }
        self.close_block()?;
        self.loops += 1;
        let (body, end) = self.nodes(&["else", "endfor"])?;
        self.loops -= 1;
        let otherwise = if end == "else" { self.body("endfor")? } else { Vec::new() };
        if end == "endfor" {
            self.close_block()?;
        }
        Ok(Node::For { targets, iterable, condition, body, otherwise })
    }

    fn target(&mut self) -> Result<Target, Fault> {
        let name = self.name()?;
        let attribute = if self.takes(".") { Some(self.name()?) } else { None };
        Ok(Target { name, attribute })
    }

    fn set(&mut self) -> Result<Node, Fault> {
        let bracket = self.takes("(");
        let mut targets = vec![self.target()?];
        while self.takes(",") {
            targets.push(self.target()?);
            self.check_chain(targets.len())?;
        }
        if bracket {
            self.expect(")")?;
        }
        if self.takes("=") {
            let value = self.tuple(true)?;
            self.close_block()?;
            return Ok(Node::Set(targets, value));
        }
        let (Some(target), true) = (targets.pop(), targets.is_empty()) else { return self.fail("expected =") };
        let mut filters = Vec::new();
        while self.takes("|") {
            filters.push(self.filter()?);
            self.check_chain(filters.len())?;
        }
        Ok(Node::SetBlock(target, filters, self.body("endset")?))
    }

    fn parameters(&mut self) -> Result<Vec<(Name, Option<Expr>)>, Fault> {
        self.expect("(")?;
        let mut parameters = Vec::new();
        while !self.takes(")") {
            if !parameters.is_empty() {
                self.expect(",")?;
                if self.takes(")") {
                    break;
                }
            }
            let name = self.name()?;
            let default = if self.takes("=") { Some(self.expression()?) } else { None };
            parameters.push((name, default));
            self.check_chain(parameters.len())?;
        }
        Ok(parameters)
    }

    /// One filter by name, as after `|`.
    fn filter(&mut self) -> Result<Postfix, Fault> {
        let name = self.dotted_name()?;
        let arguments = if self.is("(") { self.arguments()? } else { Arguments::default() };
        Ok(Postfix::Filter(name, arguments))
    }

    fn dotted_name(&mut self) -> Result<Name, Fault> {
        let mut name = self.name()?.to_string();
        while self.takes(".") {
            name = name + "." + &self.name()?;
        }
        Ok(name.into())
    }

    fn check_chain(&self, length: usize) -> Result<(), Fault> {
        if length > MAX_CHAIN {
            return self.too_deep(format!("a chain of more than {MAX_CHAIN} parts"));
        }
        Ok(())
    }

    /// An expression, or several with commas between them, which are a tuple. Without `conditions`, an `if` that
    /// follows is not part of it.
    fn tuple(&mut self, conditions: bool) -> Result<Expr, Fault> {
        let one = |parser: &mut Self| if conditions { parser.expression() } else { parser.or() };
        let first = one(self)?;
        if !self.is(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.takes(",") {
            if matches!(self.peek(), Token::CloseBlock | Token::CloseOutput) || self.is("=") || self.is(")") {
                break;
            }
            items.push(one(self)?);
        }
        Ok(Expr::Tuple(items))
    }

    /// An expression with all its operators.
    fn expression(&mut self) -> Result<Expr, Fault> {
        self.brackets += 1;
        if self.brackets > MAX_BRACKETS {
            return self.too_deep(format!("more than {MAX_BRACKETS} expressions inside each other"));
        }
        let mut value = self.or()?;
        let mut arms = Vec::new();
        let mut complete = true;
        while complete && self.takes_word("if") {
            let condition = self.or()?;
            arms.push((value, condition));
            self.check_chain(arms.len())?;
            complete = self.takes_word("else");
            value = if complete { self.or()? } else { Expr::None };
        }
        self.brackets -= 1;
        Ok(match arms.is_empty() {
            true => value,
            false => Expr::Ternary(arms, complete.then(|| Box::new(value))),
        })
    }

    fn or(&mut self) -> Result<Expr, Fault> {
        let first = self.and()?;
        let mut items = vec![first];
        while self.takes_word("or") {
            items.push(self.and()?);
            self.check_chain(items.len())?;
        }
        Ok(if items.len() == 1 { items.swap_remove(0) } else { Expr::Or(items) })
    }

    fn and(&mut self) -> Result<Expr, Fault> {
        let mut items = vec![self.not()?];
        while self.takes_word("and") {
            items.push(self.not()?);
            self.check_chain(items.len())?;
        }
        Ok(if items.len() == 1 { items.swap_remove(0) } else { Expr::And(items) })
    }

    fn not(&mut self) -> Result<Expr, Fault> {
        let mut count = 0;
        while self.takes_word("not") {
            count += 1;
            self.check_chain(count)?;
        }
        let value = self.comparison()?;
        Ok(if count == 0 { value } else { Expr::Not(count % 2 == 1, Box::new(value)) })
    }

    fn comparison(&mut self) -> Result<Expr, Fault> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let comparison = match self.peek() {
                Token::Sign("==") => Comparison::Equal,
                Token::Sign("!=") => Comparison::NotEqual,
                Token::Sign("<") => Comparison::Less,
                Token::Sign("<=") => Comparison::LessEqual,
                Token::Sign(">") => Comparison::Greater,
                Token::Sign(">=") => Comparison::GreaterEqual,
                Token::Name(name) if name == "in" => Comparison::In,
                Token::Name(name) if name == "not" && self.tokens[self.at + 1].0 == Token::Name("in".into()) => {
                    self.next();
                    Comparison::NotIn
                }
                _ => break,
            };
            self.next();
            rest.push((comparison, self.sum()?));
            self.check_chain(rest.len())?;
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    /// Operands of one rank with the operators between them.
    fn chain(
        &mut self,
        operators: &[(&str, Operator)],
        operand: impl Fn(&mut Self) -> Result<Expr, Fault>,
    ) -> Result<Expr, Fault> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some(operator) = operators.iter().find(|(sign, _)| self.is(sign)).map(|(_, operator)| *operator) {
            self.next();
            rest.push((operator, operand(self)?));
            self.check_chain(rest.len())?;
        }
        Ok(if rest.is_empty() { first } else { Expr::Chain(Box::new(first), rest) })
    }

    fn sum(&mut self) -> Result<Expr, Fault> {
        self.chain(&[("+", Operator::Add), ("-", Operator::Subtract)], |parser| {
            parser.chain(&[("~", Operator::Concat)], |parser| {
                let products = [
                    ("*", Operator::Multiply),
                    ("/", Operator::Divide),
                    ("//", Operator::FloorDivide),
                    ("%", Operator::Modulo),
                ];
                parser.chain(&products, |parser| parser.chain(&[("**", Operator::Power)], Self::signed))
            })
        })
    }

    /// Signs, a primary, and what is written behind it. A sign binds closer than a filter.
    fn signed(&mut self) -> Result<Expr, Fault> {
        let mut signs = Vec::new();
        loop {
            let sign = match self.peek() {
                Token::Sign("-") => Sign::Minus,
                Token::Sign("+") => Sign::Plus,
                _ => break,
            };
            self.next();
            signs.push(sign);
            self.check_chain(signs.len())?;
        }
        let value = self.primary()?;
        let mut value = self.postfix(value, signs.is_empty())?;
        if !signs.is_empty() {
            value = Expr::Signs(signs, Box::new(value));
            value = self.postfix(value, true)?;
        }
        Ok(value)
    }

    /// Attributes, subscripts and calls; with `filters` also filters and tests, and what follows those.
    fn postfix(&mut self, base: Expr, filters: bool) -> Result<Expr, Fault> {
        let mut operations = Vec::new();
        loop {
            let operation = if self.takes(".") {
                match self.next() {
                    Token::Name(name) => Postfix::Attribute(name.into()),
                    Token::Int(index) => Postfix::Index(Expr::Int(index)),
                    other => return self.fail(format!("expected a name, found {}", shown(&other))),
                }
            } else if self.takes("[") {
                self.subscript()?
            } else if self.is("(") {
                Postfix::Call(self.arguments()?)
            } else if filters && self.takes("|") {
                self.filter()?
            } else if filters && self.takes_word("is") {
                self.test()?
            } else {
                break;
            };
            operations.push(operation);
            self.check_chain(operations.len())?;
        }
        Ok(if operations.is_empty() { base } else { Expr::Postfix(Box::new(base), operations) })
    }

    fn subscript(&mut self) -> Result<Postfix, Fault> {
        let mut parts = [None, None, None];
        let mut slice = false;
        for (index, part) in parts.iter_mut().enumerate() {
            if !self.is(":") && !self.is("]") {
                *part = Some(Box::new(self.expression()?));
            }
            if index < 2 && self.takes(":") {
                slice = true;
            } else {
                break;
            }
        }
        self.expect("]")?;
        if slice {
            return Ok(Postfix::Slice(parts));
        }
        match parts {
            [Some(index), ..] => Ok(Postfix::Index(*index)),
            _ => self.fail("an empty subscript"),
        }
    }

    fn test(&mut self) -> Result<Postfix, Fault> {
        let negated = self.takes_word("not");
        let name = self.dotted_name()?;
        let mut arguments = Arguments::default();
        let argument_follows = match self.peek() {
            Token::Name(name) => !matches!(&**name, "else" | "or" | "and" | "is" | "if" | "in" | "not"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) => true,
            token => matches!(token, Token::Sign("[" | "{")),
        };
        if self.is("(") {
            arguments = self.arguments()?;
        } else if argument_follows {
            let value = self.primary()?;
            arguments.positional.push(self.postfix(value, false)?);
        }
        Ok(Postfix::Test { name, arguments, negated })
    }

    fn arguments(&mut self) -> Result<Arguments, Fault> {
        self.expect("(")?;
        let mut arguments = Arguments::default();
        let mut first = true;
        while !self.takes(")") {
            if !std::mem::take(&mut first) {
                self.expect(",")?;
                if self.takes(")") {
                    break;
                }
            }
            if self.is("*") || self.is("**") {
                return self.fail("arguments with * are not supported");
            }
            let is_named = matches!(self.peek(), Token::Name(_)) && self.tokens[self.at + 1].0 == Token::Sign("=");
            if is_named {
                let name = self.name()?;
                self.next();
                arguments.named.push((name, self.expression()?));
            } else if arguments.named.is_empty() {
                arguments.positional.push(self.expression()?);
            } else {
                return self.fail("an argument without a name after one with a name");
            }
            self.check_chain(arguments.positional.len() + arguments.named.len())?;
        }
        Ok(arguments)
    }

    fn primary(&mut self) -> Result<Expr, Fault> {
        Ok(match self.next() {
            Token::Name(name) => match &*name {
                "true" | "True" => Expr::Bool(true),
                "false" | "False" => Expr::Bool(false),
                "none" | "None" => Expr::None,
                _ => Expr::Name(name.into()),
            },
            Token::Int(value) => Expr::Int(value),
            Token::Float(value) => Expr::Float(value),
            Token::Str(mut text) => {
                // strings side by side are one
                while let Token::Str(more) = self.peek() {
                    text += more;
                    self.next();
                }
                Expr::Str(text.into())
            }
            Token::Sign("(") => {
                if self.takes(")") {
                    return Ok(Expr::Tuple(Vec::new()));
                }
                let value = self.tuple(true)?;
                self.expect(")")?;
                value
            }
            Token::Sign("[") => {
                let mut items = Vec::new();
                while !self.takes("]") {
                    if !items.is_empty() {
                        self.expect(",")?;
                        if self.takes("]") {
                            break;
                        }
                    }
                    items.push(self.expression()?);
                }
                Expr::List(items)
            }
            Token::Sign("{") => {
                let mut items = Vec::new();
                while !self.takes("}") {
                    if !items.is_empty() {
                        self.expect(",")?;
                        if self.takes("}") {
                            break;
                        }
                    }
                    let key = self.expression()?;
                    self.expect(":")?;
                    items.push((key, self.expression()?));
                }
                Expr::Dict(items)
            }
            other => return self.fail(format!("unexpected {}", shown(&other))),
        })
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Text(_) => "text".into(),
        Token::OpenOutput => "{{".into(),
        Token::CloseOutput => "}}".into(),
        Token::OpenBlock => "{%".into(),
        Token::CloseBlock => "%}".into(),
        Token::Name(name) => super::cut(name),
        Token::Int(value) => value.to_string(),
        Token::Float(value) => value.to_string(),
        Token::Str(_) => "a string".into(),
        Token::Sign(sign) => (*sign).into(),
        Token::End => "the end of the template".into(),
    }
}
