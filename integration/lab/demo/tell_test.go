package demo

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestReverse(t *testing.T) {
	for way, want := range map[string]string{"a → s:x,y → b": "b → s:y,x → a", "s:x → b": "b → s:x", "none": "none"} {
		if got := reverse(way); got != want {
			t.Errorf("%s: %s, want %s", way, got, want)
		}
	}
}

func TestTail(t *testing.T) {
	file := filepath.Join(t.TempDir(), "meshd.log")
	if err := os.WriteFile(file, []byte("one\ntwo\nthree\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := tail(file, 2); !slices.Equal(got, []string{"two", "three"}) {
		t.Errorf("got %q", got)
	}
	if got := tail(file+".old", 2); len(got) > 0 {
		t.Errorf("a file that is not there ends with %q", got)
	}
}
