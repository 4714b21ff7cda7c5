//! The interpreter: a tree and a conversation to text.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::arguments::Values;
use super::budget::{Budget, Fault};
use super::collections::Interpreter;
use super::operators;
use super::print;
use super::subscript::{index, slice};
use super::syntax::{Arguments, Expr, Macro, Name, Node, Postfix, Target};
use super::text::{Builder, Text};
use super::value::{Loop, Value, equal};
use super::{collections, filters, methods, predicates};

/// Most calls, blocks and expressions inside each other while rendering; the stack is made for that many.
const MAX_DEPTH: usize = 1500;

/// Renders a tree with the values that the conversation gives.
pub(super) fn render(nodes: &[Node], context: Vec<(&str, Value)>, budget: &Budget) -> Result<Text, Fault> {
    let context = context.into_iter().map(|(name, value)| (Name::from(name), value)).collect();
    let mut renderer = Renderer {
        budget,
        context,
        scopes: vec![Scope::default()],
        base: 0,
        loops: 0,
        depth: 0,
        out: Builder::default(),
    };
    renderer.nodes(nodes)?;
    Ok(renderer.out.finish())
}

type Scope = HashMap<Name, Value>;

/// How a list of nodes ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// The state of a rendering.
struct Renderer<'b> {
    budget: &'b Budget,
    context: HashMap<Name, Value>,
    /// Variables, innermost last; the first scope is the template's own.
    scopes: Vec<Scope>,
    /// The first scope of the running macro; what lies between the template's own and this one is not seen.
    base: usize,
    loops: usize,
    depth: usize,
    out: Builder,
}

/// The functions that every template has.
const FUNCTIONS: [&str; 5] = ["range", "namespace", "dict", "raise_exception", "strftime_now"];

impl Renderer<'_> {
    fn nested<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Fault::failed("too deep: macros call each other without end");
        }
        let result = run(self);
        self.depth -= 1;
        result
    }

    fn nodes(&mut self, nodes: &[Node]) -> Result<Flow, Fault> {
        for node in nodes {
            self.budget.spend(1)?;
            let flow = self.nested(|renderer| renderer.node(node))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn node(&mut self, node: &Node) -> Result<Flow, Fault> {
        match node {
            Node::Text(text) => self.out.push_template(text, self.budget)?,
            Node::Output(expr) => {
                let value = self.value(expr)?;
                print::write(&mut self.out, &value, self.budget)?;
            }
            Node::If(arms, otherwise) => {
                for (condition, body) in arms {
                    if self.value(condition)?.is_true() {
                        return self.nodes(body);
                    }
                }
                return self.nodes(otherwise);
            }
            Node::For { targets, iterable, condition, body, otherwise } => {
                self.repeat(targets, iterable, condition.as_ref(), body, otherwise)?;
            }
            Node::Set(targets, expr) => {
                let value = self.value(expr)?;
                if let [target] = &targets[..] {
                    self.assign(target, value)?;
                } else {
                    for (target, value) in targets.iter().zip(self.unpacked(&value, targets.len())?) {
                        self.assign(target, value)?;
                    }
                }
            }
            Node::SetBlock(target, operations, body) => {
                let value = self.captured(operations, body)?;
                self.assign(target, value)?;
            }
            Node::Macro(definition) => self.set(&definition.name, Value::Macro(definition.clone())),
            Node::Call(body, callee) => {
                let Expr::Postfix(base, operations) = callee else { return Fault::failed("call wants a call") };
                let Some((Postfix::Call(arguments), before)) = operations.split_last() else {
                    return Fault::failed("call wants a call");
                };
                let callee = self.value(base)?;
                let callee = self.operations(callee, before)?;
                let arguments = self.arguments(arguments)?;
                let (Value::Macro(callee), true) = (callee, body.parameters.is_empty()) else {
                    return Fault::failed("call wants a macro, and no parameters of its own");
                };
                let caller =
                    self.capture(|renderer| renderer.scoped(Scope::default(), |inner| inner.nodes(&body.body)))?;
                let text = self.call_macro(&callee, arguments, Some(Value::Caller(Rc::new(caller))))?;
                print::write(&mut self.out, &text, self.budget)?;
            }
            Node::Filter(operations, body) => {
                let value = self.captured(operations, body)?;
                print::write(&mut self.out, &value, self.budget)?;
            }
            Node::With(values, body) => {
                let mut scope = Scope::default();
                for (name, expr) in values {
                    let value = self.value(expr)?;
                    scope.insert(name.clone(), value);
                }
                return self.scoped(scope, |renderer| renderer.nodes(body));
            }
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn scoped<T>(&mut self, scope: Scope, run: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        self.scopes.push(scope);
        let result = run(self);
        self.scopes.pop();
        result
    }

    /// What `run` writes, as a text of its own.
    fn capture<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<Text, Fault> {
        let outside = std::mem::take(&mut self.out);
        let result = run(self);
        let inside = std::mem::replace(&mut self.out, outside);
        result.map(|_| inside.finish())
    }

    fn captured(&mut self, operations: &[Postfix], body: &[Node]) -> Result<Value, Fault> {
        let text = self.capture(|renderer| renderer.scoped(Scope::default(), |inner| inner.nodes(body)))?;
        self.operations(Value::Str(text), operations)
    }

    fn repeat(
        &mut self,
        targets: &[Name],
        iterable: &Expr,
        condition: Option<&Expr>,
        body: &[Node],
        otherwise: &[Node],
    ) -> Result<(), Fault> {
        let mut items = self.value(iterable)?.iterate(self.budget)?;
        if let Some(condition) = condition {
            let mut kept = Vec::new();
            for item in items {
                let scope = self.bound(targets, &item)?;
                if self.scoped(scope, |renderer| renderer.value(condition))?.is_true() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            return self.scoped(Scope::default(), |renderer| renderer.nodes(otherwise)).map(|_| ());
        }
        let state = Rc::new(Loop { items, index: Cell::new(0), depth: self.loops, changed: RefCell::new(None) });
        self.loops += 1;
        for index in 0..state.items.len() {
            self.budget.spend(1)?;
            state.index.set(index);
            let mut scope = self.bound(targets, &state.items[index])?;
            scope.insert("loop".into(), Value::Loop(state.clone()));
            if self.scoped(scope, |renderer| renderer.nodes(body))? == Flow::Break {
                break;
            }
        }
        self.loops -= 1;
        Ok(())
    }

    fn bound(&self, targets: &[Name], item: &Value) -> Result<Scope, Fault> {
        if let [target] = targets {
            return Ok(Scope::from([(target.clone(), item.clone())]));
        }
        Ok(targets.iter().cloned().zip(self.unpacked(item, targets.len())?).collect())
    }

    fn unpacked(&self, value: &Value, wanted: usize) -> Result<Vec<Value>, Fault> {
        let items = value.iterate(self.budget)?;
        if items.len() != wanted {
            return Fault::failed(format!("{wanted} names for {} values", items.len()));
        }
        Ok(items)
    }

    fn set(&mut self, name: &Name, value: Value) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.clone(), value);
        }
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<(), Fault> {
        self.budget.allocate(64)?;
        let Some(attribute) = &target.attribute else {
            self.set(&target.name, value);
            return Ok(());
        };
        let Value::Namespace(namespace) = self.variable(&target.name) else {
            return Fault::failed("cannot assign attribute on non-namespace object");
        };
        if value.holds_namespace() {
            return Fault::failed("a namespace cannot hold a namespace or a loop");
        }
        namespace.borrow_mut().insert(attribute.clone(), value);
        Ok(())
    }

    fn variable(&self, name: &Name) -> Value {
        let own = self.scopes[self.base..].iter().rev().chain(self.scopes.first());
        let found = own.filter_map(|scope| scope.get(name)).next().or_else(|| self.context.get(name));
        match found {
            Some(value) => value.clone(),
            None => match FUNCTIONS.iter().find(|function| ***function == **name) {
                Some(function) => Value::Function(function),
                None => Value::undefined(&format!("'{}'", super::cut(name))),
            },
        }
    }

    fn value(&mut self, expr: &Expr) -> Result<Value, Fault> {
        self.budget.spend(1)?;
        Ok(match expr {
            Expr::None => Value::None,
            Expr::Bool(value) => Value::Bool(*value),
            Expr::Int(value) => Value::Int(*value),
            Expr::Float(value) => Value::Float(*value),
            Expr::Str(text) => {
                self.budget.allocate(text.len())?;
                Value::text(text)
            }
            Expr::Name(name) => self.variable(name),
            nested => return self.nested(|renderer| renderer.nested_value(nested)),
        })
    }

    fn values(&mut self, exprs: &[Expr]) -> Result<Vec<Value>, Fault> {
        exprs.iter().map(|expr| self.value(expr)).collect()
    }

    fn nested_value(&mut self, expr: &Expr) -> Result<Value, Fault> {
        match expr {
            Expr::List(items) => Value::list(self.values(items)?, self.budget),
            Expr::Tuple(items) => Value::tuple(self.values(items)?, self.budget),
            Expr::Dict(items) => {
                let mut pairs = Vec::with_capacity(items.len());
                for (key, value) in items {
                    pairs.push((self.value(key)?, self.value(value)?));
                }
                Value::dict(pairs, self.budget)
            }
            Expr::Signs(signs, inner) => operators::signed(signs, self.value(inner)?),
            Expr::Not(negated, inner) => Ok(Value::Bool(self.value(inner)?.is_true() != *negated)),
            Expr::Chain(first, rest) => {
                let mut left = self.value(first)?;
                for (operator, right) in rest {
                    let right = self.value(right)?;
                    left = operators::binary(*operator, &left, &right, self.budget)?;
                }
                Ok(left)
            }
            Expr::Compare(first, rest) => {
                let mut left = self.value(first)?;
                for (comparison, right) in rest {
                    let right = self.value(right)?;
                    if !operators::compare(*comparison, &left, &right, self.budget)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Expr::And(items) => self.first_that(items, false),
            Expr::Or(items) => self.first_that(items, true),
            Expr::Ternary(arms, otherwise) => {
                for (value, condition) in arms {
                    if self.value(condition)?.is_true() {
                        return self.value(value);
                    }
                }
                match otherwise {
                    Some(value) => self.value(value),
                    None => Ok(Value::undefined("the value of an if without else")),
                }
            }
            Expr::Postfix(base, operations) => {
                let base = self.value(base)?;
                self.operations(base, operations)
            }
            simple => self.value(simple),
        }
    }

    /// The first value that is true or false as wanted, or the last one.
    fn first_that(&mut self, items: &[Expr], wanted: bool) -> Result<Value, Fault> {
        let mut last = Value::None;
        for item in items {
            last = self.value(item)?;
            if last.is_true() == wanted {
                break;
            }
        }
        Ok(last)
    }

    /// Attributes, subscripts, calls, filters and tests, one after the other.
    fn operations(&mut self, mut value: Value, operations: &[Postfix]) -> Result<Value, Fault> {
        let mut rest = operations;
        while let Some((operation, after)) = rest.split_first() {
            rest = after;
            self.budget.spend(1)?;
            value = match operation {
                Postfix::Attribute(name) => match rest.split_first() {
                    Some((Postfix::Call(arguments), after)) => {
                        rest = after;
                        let arguments = self.arguments(arguments)?;
                        self.call_method(&value, name, arguments)?
                    }
                    _ => self.attribute(&value, name)?,
                },
                Postfix::Index(key) => {
                    let key = self.value(key)?;
                    index(&value, &key, self.budget)?
                }
                Postfix::Slice(parts) => {
                    let mut bounds = [None; 3];
                    for (bound, part) in bounds.iter_mut().zip(parts) {
                        let Some(part) = part else { continue };
                        *bound = match self.value(part)? {
                            Value::None => None,
                            value => match value.as_int() {
                                Some(value) => Some(value),
                                None => return Fault::failed("slice indices must be integers or None"),
                            },
                        };
                    }
                    slice(&value, bounds, self.budget)?
                }
                Postfix::Call(arguments) => {
                    let arguments = self.arguments(arguments)?;
                    self.call(&value, arguments)?
                }
                Postfix::Filter(name, arguments) => {
                    let arguments = self.arguments(arguments)?;
                    self.filter(name, &value, arguments)?
                }
                Postfix::Test { name, arguments, negated } => {
                    let arguments = self.arguments(arguments)?;
                    Value::Bool(predicates::holds(name, &value, &arguments.positional, self.budget)? != *negated)
                }
            };
        }
        Ok(value)
    }

    fn arguments(&mut self, arguments: &Arguments) -> Result<Values, Fault> {
        let positional = self.values(&arguments.positional)?;
        let mut named = Vec::with_capacity(arguments.named.len());
        for (name, expr) in &arguments.named {
            named.push((name.clone(), self.value(expr)?));
        }
        Ok(Values { positional, named })
    }

    fn call_method(&mut self, value: &Value, name: &Name, arguments: Values) -> Result<Value, Fault> {
        if let Value::Loop(state) = value {
            match &**name {
                "cycle" if !arguments.positional.is_empty() => {
                    let index = state.index.get() % arguments.positional.len();
                    return Ok(arguments.positional[index].clone());
                }
                "changed" => {
                    let before = state.changed.replace(Some(arguments.positional.clone()));
                    let Some(before) = before else { return Ok(Value::Bool(true)) };
                    let mut same = before.len() == arguments.positional.len();
                    for (left, right) in before.iter().zip(&arguments.positional) {
                        same = same && equal(left, right, self.budget)?;
                    }
                    return Ok(Value::Bool(!same));
                }
                _ => {}
            }
        }
        let copy = Values { positional: arguments.positional.clone(), named: arguments.named.clone() };
        if let Some(result) = methods::call(value, name, copy, self.budget) {
            return result;
        }
        let callee = self.attribute(value, name)?;
        self.call(&callee, arguments)
    }

    fn call(&mut self, callee: &Value, arguments: Values) -> Result<Value, Fault> {
        match callee {
            Value::Macro(definition) => self.call_macro(&definition.clone(), arguments, None),
            Value::Caller(text) => Ok(Value::Str((**text).clone())),
            Value::Function(name) => self.function(name, arguments),
            Value::Undefined(what) => Fault::failed(format!("{what} is undefined")),
            other => Fault::failed(format!("'{}' object is not callable", other.kind())),
        }
    }

    fn function(&mut self, name: &str, arguments: Values) -> Result<Value, Fault> {
        match name {
            "range" => collections::range(arguments, self.budget),
            "namespace" | "dict" => {
                let mut pairs = Vec::new();
                for value in &arguments.positional {
                    match value {
                        Value::Dict(dict) => pairs.extend(dict.entries.iter().cloned()),
                        other => return Fault::failed(format!("{name} of a {}", other.kind())),
                    }
                }
                pairs.extend(arguments.named.iter().map(|(name, value)| (Value::text(name), value.clone())));
                let Value::Dict(dict) = Value::dict(pairs, self.budget)? else { return Fault::failed(name) };
                if name == "dict" {
                    return Ok(Value::Dict(dict));
                }
                let mut attributes = HashMap::new();
                for (key, value) in &dict.entries {
                    if value.holds_namespace() {
                        return Fault::failed("a namespace cannot hold a namespace or a loop");
                    }
                    attributes.insert(print::text(key, self.budget)?.as_str().into(), value.clone());
                }
                Ok(Value::Namespace(Rc::new(RefCell::new(attributes))))
            }
            "raise_exception" => {
                let [message] = arguments.bind(name, ["message"])?;
                let message = print::text(&message.unwrap_or(Value::text("")), self.budget)?;
                Err(Fault::Refused(message.as_str().to_owned()))
            }
            "strftime_now" => {
                let [format] = arguments.bind(name, ["format"])?;
                let format = print::text(&format.unwrap_or(Value::text("")), self.budget)?;
                self.budget.allocate(format.as_str().len().saturating_mul(16))?;
                Ok(Value::text(&super::clock::now(format.as_str())))
            }
            _ => Fault::failed(format!("there is no function {name}")),
        }
    }

    fn call_macro(
        &mut self,
        definition: &Arc<Macro>,
        arguments: Values,
        caller: Option<Value>,
    ) -> Result<Value, Fault> {
        let mut scope = Scope::default();
        let mut positional = arguments.positional.into_iter();
        let mut named = arguments.named;
        let mut defaults = Vec::new();
        for (name, default) in &definition.parameters {
            let given = positional.next().or_else(|| {
                let place = named.iter().position(|(own, _)| own == name)?;
                Some(named.swap_remove(place).1)
            });
            match (given, default) {
                (Some(value), _) => drop(scope.insert(name.clone(), value)),
                (None, Some(default)) => defaults.push((name, default)),
                (None, None) => {
                    let what = format!("parameter '{}'", super::cut(name));
                    scope.insert(name.clone(), Value::undefined(&what));
                }
            }
        }
        scope.insert("varargs".into(), Value::tuple(positional.collect(), self.budget)?);
        let rest = named.into_iter().map(|(name, value)| (Value::text(&name), value)).collect();
        scope.insert("kwargs".into(), Value::dict(rest, self.budget)?);
        if let Some(caller) = caller {
            scope.insert("caller".into(), caller);
        }
        self.budget.allocate(64 * (4 + definition.parameters.len()))?;
        let base = std::mem::replace(&mut self.base, self.scopes.len());
        let text = self.nested(|renderer| {
            renderer.capture(|renderer| {
                renderer.scoped(scope, |renderer| {
                    for (name, default) in defaults {
                        let value = renderer.value(default)?;
                        renderer.set(name, value);
                    }
                    renderer.nodes(&definition.body)
                })
            })
        });
        self.base = base;
        text.map(Value::Str)
    }
}

impl<'b> Interpreter<'b> for Renderer<'b> {
    fn budget(&self) -> &'b Budget {
        self.budget
    }

    fn filter(&mut self, name: &str, value: &Value, arguments: Values) -> Result<Value, Fault> {
        self.nested(|renderer| {
            let copy = Values { positional: arguments.positional.clone(), named: arguments.named.clone() };
            if let Some(result) = filters::apply(name, value, copy, renderer.budget) {
                return result;
            }
            match collections::apply(renderer, name, value, arguments) {
                Some(result) => result,
                None => Fault::failed(format!("there is no filter {:?}", super::cut(name))),
            }
        })
    }

    fn attribute(&mut self, value: &Value, name: &str) -> Result<Value, Fault> {
        let missing =
            || Value::undefined(&format!("'{} object' has no attribute '{}'", value.kind(), super::cut(name)));
        Ok(match value {
            Value::Undefined(what) => return Fault::failed(format!("{what} is undefined")),
            Value::Dict(dict) => dict.get_str(name, self.budget)?.cloned().unwrap_or_else(missing),
            Value::Namespace(namespace) => namespace.borrow().get(name).cloned().unwrap_or_else(missing),
            Value::Loop(state) => {
                let (index, length) = (state.index.get(), state.items.len());
                let int = |value: usize| Value::Int(value as i64);
                match name {
                    "index" => int(index + 1),
                    "index0" => int(index),
                    "revindex" => int(length - index),
                    "revindex0" => int(length - index - 1),
                    "first" => Value::Bool(index == 0),
                    "last" => Value::Bool(index + 1 == length),
                    "length" => int(length),
                    "depth" => int(state.depth + 1),
                    "depth0" => int(state.depth),
                    "previtem" if index > 0 => state.items[index - 1].clone(),
                    "nextitem" if index + 1 < length => state.items[index + 1].clone(),
                    _ => missing(),
                }
            }
            Value::Macro(definition) if name == "name" => Value::text(&definition.name),
            _ => missing(),
        })
    }
}
