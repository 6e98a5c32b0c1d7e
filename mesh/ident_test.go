package mesh

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// nameSyntax says again what CheckName checks.
var nameSyntax = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\z`)

// wellKept says where a name would not stand for itself, as the one word that it
// is; nothing: nowhere.
func wellKept(name string) string {
	encoded, err := json.Marshal(name)
	var line bytes.Buffer
	slog.New(slog.NewTextHandler(&line, nil)).Info("said", LogNode, name)
	switch {
	case !nameSyntax.MatchString(name):
		return "syntax"
	case filepath.Base(filepath.Clean(name)) != name || name == "." || name == ".." || filepath.IsAbs(name):
		return "a file's name"
	case err != nil || string(encoded) != `"`+name+`"` || strconv.Quote(name) != `"`+name+`"`:
		return "JSON or a quoted text"
	case strings.Count(line.String(), "\n") != 1 || !strings.HasSuffix(line.String(), " "+LogNode+"="+name+"\n"):
		return "a line of the log"
	case url.PathEscape(name) != name || url.QueryEscape(name) != name:
		return "a URL"
	case len(strings.Fields("guywire "+name+"/"+name+" epoch 1")) != 4: // of a device's alias, and of a comment
		return "a device's alias"
	case len(strings.FieldsFunc(name, func(r rune) bool {
		return strings.ContainsRune("'\"`$\\;&|<>(){}[]*?!#~=,:@%^+_", r) || unicode.IsSpace(r)
	})) != 1:
		return "a command line"
	case strings.ToLower(name) != name || strings.HasPrefix(name, "-"):
		return "a flag, or another spelling of a name"
	}
	return ""
}

// TestB18Names: what has a meaning of its own anywhere is no name.
func TestB18Names(t *testing.T) {
	for _, bad := range []string{
		"", "-", "a-", "-a", "--yes", ".", "..", "../keys", "a/b", `a\b`, "a b", " a", "a\n", "a\x00", "\x1b[2J", "a\tb", "A", "Ä", "a\u0301", "ﬁ",
		"a'b", `a"b`, "a;drop", "$(id)", "`id`", "a{b}", "a|b", "a&b", "a>b", "a#b", "a%b", "a:b", "a=b", "a,b", "a_b", "a.b", "a@b", "*",
		"\u202eabc", "а" /* Cyrillic */, "\xff", strings.Repeat("a", 33),
	} {
		if err := CheckName(bad); err == nil {
			t.Errorf("%q is a name", bad)
		} else if strings.ContainsFunc(err.Error(), unicode.IsControl) {
			t.Errorf("the refusal of %q brings it to the terminal: %q", bad, err)
		}
	}
	for _, good := range []string{"a", "0", "a-b", "a--b", "0-0", "paris-1", strings.Repeat("a", 32)} {
		if err := CheckName(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
		if where := wellKept(good); where != "" {
			t.Errorf("%q does not stand as %s", good, where)
		}
	}
}

func FuzzName(f *testing.F) {
	for _, name := range []string{"paris-1", "a", "-a", "a/b", "a\n", strings.Repeat("a", 33)} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if good := CheckName(name) == nil; good != nameSyntax.MatchString(name) {
			t.Fatalf("%q is a name: %t", name, good)
		} else if where := wellKept(name); good && where != "" {
			t.Fatalf("%q does not stand as %s", name, where)
		}
	})
}
