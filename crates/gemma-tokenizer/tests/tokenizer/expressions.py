"""Writes expressions.json: what Jinja makes of expressions that chat templates may have, set up as transformers sets it up.

    pip install jinja2==3.1.6
    python expressions.py > expressions.json

Left out is what the crate refuses by name (`random`, `filesizeformat`, `xmlattr`, `encode`, ...), integers beyond 64 bits, and
how a range or a namespace is printed, which no prompt needs.
"""

import json

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEXTS = ["'it\\'s a-B (c) <e> f'", "'äÖ ß'", "''", "' \\t x \\n'", "'a,b,,c'", "'-42'", "'0x1F'", "'ab\\ncd\\r\\nef\\n'"]
TEXT_FILTERS = """upper;lower;capitalize;title;trim;length;int;float;wordcount;reverse;first;last;list;string;escape;striptags;urlencode;
center(20);center(21);indent;indent(2, true);indent(2, true, true);truncate(5, true, '..', 0);truncate(6, false, '~', 0);
int(7, 16);int(0, 0);replace('a', 'XX');replace('', '-');default('d', true);tojson;pprint;unique|list;sort;
sort(reverse=true);sort(case_sensitive=true);batch(3)|list;slice(2)|list;max;min;join('/')"""
METHODS = """upper();lower();title();capitalize();swapcase();strip();lstrip('i ');rstrip('f\\n');split();split(',');split(' ', 1);
rsplit(' ', 1);rsplit(maxsplit=1);split(maxsplit=1);splitlines();splitlines(true);startswith('i');endswith(('f','c'));
startswith('t', 1);find('a');find('a', 6);rfind('a', 0, 5);count('a');count('');count('b', 3);count('b', -2);zfill(8);
center(12);center(13);center(12,'*');ljust(12,'.');rjust(12,'.');isdigit();isalpha();isalnum();isspace();isupper();
islower();isascii();partition(' ');rpartition(' ');removeprefix('it');removesuffix('c');replace('a','L',1);
replace('','-',2)"""
SLICES = "[0];[-1];[1:3];[::-1];[::2];[-3:];[5:1];[5:1:-1]"
NUMBERS = ["0", "-7", "3.5", "-0.5", "2.675", "1e16", "true", "0.15"]
NUMBER_FILTERS = """abs;int;float;round;round(1);round(2);round(0,'ceil');round(1,'floor');string;tojson;default(9,true);pprint;
round|int;title"""
TESTS = """odd;even;number;integer;float;string;boolean;true;false;none;defined;undefined;iterable;sequence;mapping;divisibleby(3);
sameas(1);eq(1);ne(1);gt(0);in([1,2]);lower;upper"""
LISTS = ["[3,1,2]", "[]", "['b','A','c','a']", "(1,2,3)", "{'b':1,'a':2}", "[[1,2],[3]]", "[1.5,2,true]", "missing",
         "[{'n':'x','v':2},{'n':'y','v':1},{'n':'X'}]"]
LIST_FILTERS = """length;first;last;list;sort;sort(reverse=true);reverse|list;sum;max;min;join(',');join('|',attribute='n');unique|list;
map('string')|list;map('upper')|join;map(attribute='n')|list;map(attribute='v',default=0)|list;selectattr('v')|list;
selectattr('n','equalto','x')|list;rejectattr('v','defined')|list;select('odd')|list;reject('none')|list;select|list;
batch(2,'z')|list;slice(2)|list;slice(2,'z')|list;groupby('n')|list;groupby('n')|map('first')|list;dictsort;
dictsort(by='value');dictsort(reverse=true);items|list;tojson;tojson(indent=2);tojson(sort_keys=true);string;
sum(attribute='v');sum(start=10);sort(attribute='v');attr('a');default('d');default('d',true);trim;upper;title;
tojson(separators=(',',':'))"""
LIST_ENDS = "[0];[-1];[1:];[::-1];.a;['a'];[9];.zz;.items()|list;.keys()|list;.values()|list;.get('a');.get('q',5);.index(1);.count(1);.copy()"
OTHERS = r"""'%s-%d-%05.2f'|format('a', 3, 2.5);'%(a)s'|format(a=1);'{} {}'.format(1,2);'%x %X %o %e %g %%'|format(255,255,8,12345.678,0.0001);
'%5s|%-5s|%+d'|format('a','b',3);1 if true;1 if false else 2;'a' 'b';1 < 2 < 3;3 > 2 > 2;not 1 == 2;2 ** 3 ** 2;-2 ** 2;
7 // -2;7 % -2;-7 // 2;-7 % 2;7.5 // 2;-7.5 // 2;7.5 // -2;1e16 % 3.5;'a' ~ 1 ~ none ~ true ~ 1.0;range(5,0,-2)|list;
dict(a=1,b=2);{'a':{'b':[1,2]}}.a.b[1];1e100;1.5e-7;100000000000000000.0;0.1+0.2;1/3;[1.0, 2e300];{1:'a'}|tojson;
'é\u2028<&>'|tojson;'\x00\x1f\\'|tojson;[[]]|tojson(indent=2);(1,2)|tojson;'ab'*3;[0]*3;true + 1;true and 'x';0 or 'y';
1 == 1.0;1 == true;'1' == 1;[1,2] == (1,2);[1,2] < [1,3];{'a':1} == {'a':1.0};1 in [1.0];loop is defined;x.y is defined;
(x)|default('z');1_000;"a'b";'tab\tx';[1,2,];(1,);();'%s %s' % ('a', 1);'abc'[1];{'items':3}.items;{'items':3}['items'];
'a' if 0 else 'b' if 0 else 'c';'x'|int;'x'|int(5);'1.9'|int;'1e3'|int;' 12 '|int;'1_000'|int;'1__0'|int;'0b11'|int(0,2);
'0o17'|int(0,8);'017'|int(1,0);'z'|int(0,36);'12abc'|int;none|int;'1_0.5'|float;[1,none]|map('default',0)|list;
[{'a':{'b':1}}]|map(attribute='a.b')|list;[[1,2]]|map(attribute=0)|list;[{'a':1},{'a':2}]|selectattr('a','gt',1)|list;
['a','A','b']|unique(case_sensitive=true)|list;[{'n':'x'},{'n':'X'}]|groupby('n', case_sensitive=true)|list"""


def expressions():
    def split(text):
        return [part.strip() for part in text.split(";")]

    for text in TEXTS:
        yield from (f"{text}|{end}" for end in split(TEXT_FILTERS))
        yield from (f"({text}).{end}" for end in split(METHODS))
        yield from (f"({text}){end}" for end in split(SLICES))
    for number in NUMBERS:
        yield from (f"({number})|{end}" for end in split(NUMBER_FILTERS))
        yield from (f"({number}) is {end}" for end in split(TESTS))
        yield from (f"({number}) {sign} ({other})" for sign in ["+", "*", "/", "//", "%", "<", "=="] for other in NUMBERS)
    for items in LISTS:
        yield from (f"({items})|{end}" for end in split(LIST_FILTERS))
        yield from (f"({items}){end}" for end in split(LIST_ENDS))
        for other in ["[1]", "'a'", "2"]:
            yield from (f"({items}) {sign} ({other})" for sign in ["+", "==", "~", "and", "or"])
            yield f"({other}) in ({items})"
    yield from split(OTHERS)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
environment.filters["tojson"] = tojson
cases = {}
for expression in expressions():
    try:
        cases[expression] = environment.from_string("{{ " + expression + " }}").render()
    except Exception:
        cases[expression] = None  # an error
cases = {key: text for key, text in cases.items() if " object at 0x" not in (text or "") and "<b" not in (text or "")}
print("[")
print(",\n".join(json.dumps(case, ensure_ascii=False) for case in cases.items()))
print("]")
