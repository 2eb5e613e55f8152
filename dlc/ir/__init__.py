"""The intermediate representation, in the order in which a reader needs it.

sizes        integers and polynomials in named dimensions
types        element type and shape
op           the op record: all about one operator in one place
node         interned nodes, which are also the DSL's tensors
operators    their operators and elementwise functions;  arithmetic: their other methods
indexing     x[key] as slice, take and reshape
graph        inputs, outputs, aliases
pattern      rules in the DSL's own syntax;  rewrite: applies a table of them until none fires
manager      runs passes: verify, time, dump, bisect;  values: check by value
verify       what every graph must satisfy
text         the text form, which round-trips;  parse: reads it
draw         SVG drawing;  layers: its layout
plan         what backends and the runtime see: buffers and steps
"""
