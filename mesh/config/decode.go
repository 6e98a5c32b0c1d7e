package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// A decoder walks the syntax tree of one file and keeps what is wrong with
// it. It goes on after a fault, so that one run shows an operator all of them.
type decoder struct {
	lines  []string
	faults []*Fault
}

// fault records what is wrong at n.
func (d *decoder) fault(n ast.Node, format string, args ...any) {
	at := n.GetToken()
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		at = m.Values[0].Key.GetToken() // its own token is the colon after that
	}
	d.faultAt(at, fmt.Sprintf(format, args...))
}

func (d *decoder) faultAt(t *token.Token, message string) {
	f := &Fault{Message: message}
	if t != nil && t.Position != nil {
		f.Line, f.Column = t.Position.Line, t.Position.Column
		if i := f.Line - 1; i >= 0 && i < len(d.lines) {
			f.Source = strings.Map(printable, strings.TrimRight(d.lines[i], "\r"))
		}
	}
	d.faults = append(d.faults, f)
}

// printable keeps a terminal safe from what a file may hold, rune for rune.
func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return ' '
	}
	return r
}

// root gives the top mapping of the file, nil when the file is empty or broken.
func (d *decoder) root(src []byte) ast.Node {
	if nesting(d.lines) > maxNesting {
		d.faults = append(d.faults, &Fault{Message: "not a configuration: it is nested too deeply"})
		return nil
	}
	file, err := parser.ParseBytes(src, 0)
	if err != nil {
		if at, ok := errors.AsType[yaml.Error](err); ok {
			d.faultAt(at.GetToken(), "not YAML: "+at.GetMessage())
		} else {
			d.faults = append(d.faults, &Fault{Message: "not YAML: " + err.Error()})
		}
		return nil
	}
	var body ast.Node
	for _, doc := range file.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.CommentType {
			continue
		}
		if body != nil {
			d.fault(doc.Body, "a second document begins here: keep all settings in one")
			return nil
		}
		body = doc.Body
	}
	return body
}

// maxNesting bounds what nesting counts. The parser's time grows with the
// square of the depth, to tens of seconds for a file full of brackets.
const maxNesting = 1000

// nesting counts what could open a level: brackets anywhere, and dashes that
// follow another at the beginning of a line.
func nesting(lines []string) (n int) {
	for _, line := range lines {
		n += strings.Count(line, "[") + strings.Count(line, "{")
		rest := strings.TrimLeft(line, "-? \t")
		n += max(0, strings.Count(line[:len(line)-len(rest)], "-")-1)
	}
	return n
}

// pairs gives the entries of a mapping; null is an empty one.
func (d *decoder) pairs(n ast.Node, what string) []*ast.MappingValueNode {
	switch n := n.(type) {
	case nil, *ast.NullNode:
		return nil
	case *ast.MappingNode:
		return n.Values
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}
	default:
		d.fault(n, "%s must be settings, written \"name: value\"", what)
		return nil
	}
}

// A field reads the value of one setting.
type field struct {
	key  string
	read func(ast.Node)
}

// mapping gives each entry of n to its field. A null value leaves the default.
func (d *decoder) mapping(n ast.Node, what string, fields ...field) {
	seen := map[string]bool{}
	for _, pair := range d.pairs(n, what) {
		key := pair.Key.GetToken().Value
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
		switch {
		case i < 0:
			known := make([]string, len(fields))
			for j, f := range fields {
				known[j] = f.key
			}
			d.fault(pair.Key, "unknown setting %q in %s; there are: %s", key, what, strings.Join(known, ", "))
		case seen[key]:
			d.fault(pair.Key, "setting %q appears twice", key)
		case pair.Value != nil && pair.Value.Type() != ast.NullType:
			fields[i].read(pair.Value)
		}
		seen[key] = true
	}
}

// list gives each element of n to read. Null is the empty list.
func (d *decoder) list(n ast.Node, what string, limit int, read func(ast.Node)) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fault(n, "%s must be a list, written [a, b] or one \"- a\" per line", what)
		return
	}
	if len(seq.Values) > limit {
		d.fault(seq.Values[limit], "%s may have %d entries at most", what, limit)
		return
	}
	for _, v := range seq.Values {
		read(v)
	}
}

// scalar gives the text of a plain or quoted value; ok is false for anything
// that is more than that, which is a fault.
func (d *decoder) scalar(n ast.Node, what string) (text string, ok bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	case *ast.AliasNode, *ast.AnchorNode, *ast.TagNode:
		d.fault(n, "%s must be a plain value: anchors, aliases and tags are not used here", what)
	default:
		d.fault(n, "%s must be a single value", what)
	}
	return "", false
}

// text is a scalar that check accepts; check may be nil.
func (d *decoder) text(to *string, what string, check func(string) error) func(ast.Node) {
	return func(n ast.Node) {
		s, ok := d.scalar(n, what)
		if !ok {
			return
		}
		if check != nil {
			if err := check(s); err != nil {
				d.fault(n, "%s: %v", what, err)
				return
			}
		}
		*to = s
	}
}

// flag is true or false.
func (d *decoder) flag(to *bool, what string) func(ast.Node) {
	return func(n ast.Node) {
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.fault(n, "%s must be true or false", what)
			return
		}
		*to = b.Value
	}
}

// oneOf is one of a few words.
func oneOf[T ~string](d *decoder, to *T, what string, values ...T) func(ast.Node) {
	return func(n ast.Node) {
		s, ok := d.scalar(n, what)
		if !ok {
			return
		}
		if !slices.Contains(values, T(s)) {
			words := make([]string, len(values))
			for i, v := range values {
				words[i] = string(v)
			}
			d.fault(n, "%s is %q but must be one of %s", what, s, strings.Join(words, ", "))
			return
		}
		*to = T(s)
	}
}

// number is a decimal integer from low to high.
func number[T int | uint16](d *decoder, to *T, what string, low, high uint64) func(ast.Node) {
	return func(n ast.Node) {
		s, ok := d.scalar(n, what)
		if !ok {
			return
		}
		v, err := parseNumber(s, low, high)
		if err != nil {
			d.fault(n, "%s %v", what, err)
			return
		}
		*to = T(v)
	}
}
