//! The tree of a template. Chains of equal rank are lists, so that only brackets and blocks make it deeper.

use std::sync::Arc;

pub(super) type Name = Arc<str>;

/// A stretch of a template.
#[derive(Debug)]
pub(super) enum Node {
    /// Text outside of tags.
    Text(Name),
    /// `{{ expression }}`.
    Output(Expr),
    /// Conditions with their bodies, and the body of `else`.
    If(Vec<(Expr, Vec<Node>)>, Vec<Node>),
    /// `{% for targets in iterable if condition %}`.
    For {
        targets: Vec<Name>,
        iterable: Expr,
        condition: Option<Expr>,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    /// `{% set a, b = value %}`.
    Set(Vec<Target>, Expr),
    /// `{% set a %}...{% endset %}`, with filters.
    SetBlock(Target, Vec<Postfix>, Vec<Node>),
    /// `{% macro name(parameters) %}`.
    Macro(Arc<Macro>),
    /// `{% call(parameters) callee() %}`.
    Call(Arc<Macro>, Expr),
    /// `{% filter a|b %}`.
    Filter(Vec<Postfix>, Vec<Node>),
    /// `{% with a = 1 %}`, and `{% generation %}`, which has no variables.
    With(Vec<(Name, Expr)>, Vec<Node>),
    Break,
    Continue,
}

/// What `set` assigns to: a name, or a name and an attribute of the namespace it holds.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) name: Name,
    pub(super) attribute: Option<Name>,
}

/// A macro, or the body of a call block.
#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: Name,
    pub(super) parameters: Vec<(Name, Option<Expr>)>,
    pub(super) body: Vec<Node>,
}

#[derive(Debug)]
pub(super) enum Expr {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Name),
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// Signs, outermost first.
    Signs(Vec<Sign>, Box<Expr>),
    /// An odd number of `not`s: the flag; or an even one.
    Not(bool, Box<Expr>),
    /// Operators of one rank, from left to right.
    Chain(Box<Expr>, Vec<(Operator, Expr)>),
    /// `a < b <= c`: true when each pair is.
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    /// `value if condition else ...`.
    Ternary(Vec<(Expr, Expr)>, Option<Box<Expr>>),
    /// Attributes, subscripts, calls, filters and tests, in order.
    Postfix(Box<Expr>, Vec<Postfix>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sign {
    Plus,
    Minus,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
    Concat,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
}

#[derive(Debug)]
pub(super) enum Postfix {
    Attribute(Name),
    Index(Expr),
    Slice([Option<Box<Expr>>; 3]),
    Call(Arguments),
    Filter(Name, Arguments),
    Test { name: Name, arguments: Arguments, negated: bool },
}

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(Name, Expr)>,
}
