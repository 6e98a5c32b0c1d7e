package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxFileBytes bounds a network file.
const maxFileBytes = 1 << 20

// Parse reads a network file. It is strict: an unknown, doubled or senseless setting is an error that names the line, as
// a [FileError]. The result is valid: [Up] finds nothing wrong with it that belongs to the file.
func Parse(r io.Reader) (*Network, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the network: %w", err)
	}
	if len(data) > maxFileBytes {
		return nil, &FileError{Text: fmt.Sprintf("a network file has %d bytes at most", maxFileBytes)}
	}
	net, file, err := decode(data)
	if err != nil {
		return nil, err
	}
	if err := net.Validate(); err != nil {
		if fe, ok := errors.AsType[*FileError](err); ok {
			fe.Line = pathLine(file, fe.Path)
		}
		return nil, err
	}
	return net, nil
}

// decode reads the YAML. Where it is broken in an unusual way the library panics; that is an error like any other.
func decode(data []byte) (net *Network, file *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &FileError{Text: fmt.Sprintf("the file is not proper YAML: %v", p)}
		}
	}()
	file, err = parser.ParseBytes(data, 0)
	if err != nil {
		return nil, nil, yamlError(err)
	}
	if len(file.Docs) > 1 {
		return nil, nil, &FileError{Line: lineOf(file.Docs[1].Body), Text: "a network file is one YAML document"}
	}
	net = new(Network)
	err = yaml.NewDecoder(bytes.NewReader(data), yaml.Strict(),
		yaml.CustomUnmarshaler(scalar(parsePrefix)), yaml.CustomUnmarshaler(scalar(parseDuration)),
		yaml.CustomUnmarshaler(scalar(ParseRatio)), yaml.CustomUnmarshaler(scalar(ParseRate))).Decode(net)
	if bad, ok := errors.AsType[*scalarError](err); ok {
		return nil, nil, &FileError{Line: scalarLine(file, bad.text), Text: bad.err.Error()}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, yamlError(err)
	}
	return net, file, nil
}

// scalarError is a value that does not read as its type. The YAML library does not say where it is.
type scalarError struct {
	text string
	err  error
}

func (e *scalarError) Error() string { return e.err.Error() }

// scalar makes a decoder for one of our value types.
func scalar[T any](parse func(string) (T, error)) func(*T, []byte) error {
	return func(out *T, data []byte) error {
		s := strings.Trim(strings.TrimSpace(string(data)), `"'`)
		v, err := parse(s)
		if err != nil {
			return &scalarError{s, err}
		}
		*out = v
		return nil
	}
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is not an address with its length; write one like 10.1.0.0/24", s)
	}
	return p, nil
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a time; write one like 5ms or 2s", s)
	}
	return d, nil
}

// yamlError turns an error of the YAML library into a FileError.
func yamlError(err error) error {
	fe := &FileError{Text: err.Error()}
	var located interface {
		GetToken() *token.Token
		GetMessage() string
	}
	if errors.As(err, &located) {
		fe.Text = located.GetMessage()
		if t := located.GetToken(); t != nil && t.Position != nil {
			fe.Line = t.Position.Line
		}
	}
	return fe
}

// pathLine finds the line of the deepest part of the path that the file has: of the key, or of the element.
func pathLine(file *ast.File, path string) int {
	if len(file.Docs) == 0 {
		return 0
	}
	at, line := file.Docs[0].Body, 0
	for part := range strings.FieldsFuncSeq(path, func(r rune) bool { return strings.ContainsRune(".[]", r) }) {
		var next ast.Node
		switch n := at.(type) {
		case *ast.MappingNode:
			for _, v := range n.Values {
				if v.Key.GetToken().Value == part {
					next, line = v.Value, lineOf(v.Key)
				}
			}
		case *ast.SequenceNode:
			if i, err := strconv.Atoi(part); err == nil && i < len(n.Values) {
				next, line = n.Values[i], lineOf(n.Values[i])
			}
		}
		if next == nil {
			return line
		}
		at = next
	}
	return line
}

func lineOf(node ast.Node) int {
	if m, ok := node.(*ast.MappingNode); ok && len(m.Values) > 0 {
		return lineOf(m.Values[0].Key)
	}
	if node == nil || node.GetToken() == nil || node.GetToken().Position == nil {
		return 0
	}
	return node.GetToken().Position.Line
}

// scalarKeys are the settings whose values have decoders of ours.
var scalarKeys = []string{
	"subnet", "subnet6", "lan", "lan6", "address", "address6", "a_addr", "a_addr6", "b_addr", "b_addr6",
	"delay", "jitter", "mapping_timeout", "loss", "reorder", "duplicate", "rate",
}

// scalarLine finds the first such setting with the value.
func scalarLine(file *ast.File, text string) int {
	line := 0
	for _, doc := range file.Docs {
		ast.Walk(visitor(func(n ast.Node) {
			v, ok := n.(*ast.MappingValueNode)
			if ok && line == 0 && slices.Contains(scalarKeys, v.Key.GetToken().Value) && v.Value.GetToken().Value == text {
				line = lineOf(v.Key)
			}
		}), doc.Body)
	}
	return line
}

type visitor func(ast.Node)

func (v visitor) Visit(n ast.Node) ast.Visitor {
	v(n)
	return v
}
