package truth

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"guywire/integration/lab"
)

// secrets are what nobody may find outside of the files that are for it: the
// tokens' texts and every private key, by name.
func (w *world) secrets() map[string][]byte {
	w.Helper()
	secrets := map[string][]byte{}
	add := func(name, text string) { secrets[name] = []byte(strings.TrimSpace(text)) }
	add("the sites' token", w.tokens.Site)
	add("the clients' token", w.tokens.Client)
	shared, _ := filepath.Glob(filepath.Join(w.shared, "tokens", "*")) // none were made
	for _, file := range shared {
		b, err := os.ReadFile(file)
		if err != nil {
			w.Fatal(err)
		}
		add("token "+filepath.Base(file), string(b))
	}
	for _, site := range w.sites {
		var authority struct {
			Key []byte `json:"key"`
		}
		b, err := os.ReadFile(filepath.Join(w.state(site), "control", "authority"))
		if err != nil {
			w.Fatal(err)
		}
		if err := json.Unmarshal(b, &authority); err != nil || len(authority.Key) < 32 {
			w.Fatalf("the CA's key of %s: %v", site, err)
		}
		secrets["the CA's key"] = authority.Key[:32] // the seed: the other half is public
		keys := 0
		err = filepath.WalkDir(filepath.Join(w.state(site), "keys"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			for _, word := range bytes.FieldsFunc(b, func(r rune) bool { return strings.ContainsRune(" \n\":,{}[]", r) }) {
				if raw := decoded(word); len(raw) >= 32 {
					secrets[site+"'s key "+d.Name()] = raw
					keys++
					break // the second half of the file is public
				}
			}
			return err
		})
		if err != nil || keys < 2 {
			w.Fatalf("%d keys of %s: %v", keys, site, err)
		}
	}
	return secrets
}

// decoded reads a word as hex or base64; nil: it is neither.
func decoded(word []byte) []byte {
	if raw, err := hex.DecodeString(string(word)); err == nil {
		return raw
	}
	raw, err := base64.StdEncoding.DecodeString(string(word))
	if err != nil {
		return nil
	}
	return raw
}

// spellings are the ways in which a secret could be written.
func spellings(secret []byte) [][]byte {
	all := [][]byte{secret}
	if bytes.HasPrefix(secret, []byte("gw")) { // a token's text; no log breaks it
		return all
	}
	return append(
		all, []byte(hex.EncodeToString(secret)), []byte(strings.ToUpper(hex.EncodeToString(secret))),
		// Base64 by three bytes, whatever came before the secret.
		[]byte(base64.RawStdEncoding.EncodeToString(secret[:len(secret)/3*3])), []byte(base64.RawStdEncoding.EncodeToString(secret[1:len(secret)/3*3-2])),
		[]byte(base64.RawStdEncoding.EncodeToString(secret[2:len(secret)/3*3-1])), fmt.Append(nil, secret),
	)
}

// home is where a secret may be.
func home(path string) bool {
	return strings.Contains(path, "/state/keys/") || strings.Contains(path, "/client/keys/") || strings.HasSuffix(path, "/control/authority")
}

// canaries searches everything that the nodes wrote, and further texts by name,
// for secrets (I8, B5, B23).
func (w *world) canaries(secrets map[string][]byte, texts map[string][]byte) {
	w.Helper()
	searched := 0
	search := func(where string, b []byte) {
		searched++
		for name, secret := range secrets {
			for _, spelling := range spellings(secret) {
				if bytes.Contains(b, spelling) {
					w.Errorf("%s is in %s", name, where)
				}
			}
		}
	}
	err := filepath.WalkDir(filepath.Join(w.lab.Dir(), "nodes"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || home(path) {
			return err
		}
		b, err := os.ReadFile(path)
		search(path, b)
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	for name, text := range texts {
		search(name, text)
	}
	if searched < 10 {
		w.Errorf("only %d files were searched", searched)
	}
}

// modes checks that only their owner may look at files of state (B31).
func (w *world) modes() {
	w.Helper()
	for _, site := range w.sites {
		files := 0
		err := filepath.WalkDir(w.state(site), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			files++
			info, err := d.Info()
			if err == nil && info.Mode().Perm()&0o077 != 0 {
				w.Errorf("%s has mode %s", path, info.Mode())
			}
			return err
		})
		if err != nil || files < 10 {
			w.Errorf("%d files in the state of %s: %v", files, site, err)
		}
	}
}

// answers are what the API says to every question, and the command lines of
// all processes that the nodes see.
func (w *world) answers() map[string][]byte {
	w.Helper()
	texts := map[string][]byte{}
	for _, site := range w.sites {
		for _, what := range []string{"status", "nodes", "tokens", "links", "routes", "topology", "drains", "version", "events"} {
			texts["the answer of "+site+" about "+what] = []byte(w.must(site, "", "ask", what))
		}
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		w.Fatal(err)
	}
	for _, file := range lines {
		if b, err := os.ReadFile(file); err == nil { // else it has ended
			texts[file] = b
		}
	}
	return texts
}

// TestB05Canary: no secret is in a log at debug level, an answer of the API, a
// file that is not for secrets, or a command line, with everything running.
// (There is no debug bundle to look into yet.)
func TestB05Canary(t *testing.T) {
	w := build(t, lab.Options{Path: []string{bin}})
	secrets := w.secrets()
	w.canaries(secrets, w.answers())
	planted := &verdict{TB: t}
	(&world{TB: planted, lab: w.lab}).canaries(map[string][]byte{"a planted one": []byte("gw1"), "a name": []byte("truth")}, nil)
	if !planted.bad {
		t.Error("the search finds not even the mesh's name")
	}
}

// TestB31Modes: the files of state, and the sockets, are their owner's alone.
func TestB31Modes(t *testing.T) {
	w := build(t, lab.Options{Path: []string{bin}})
	w.modes()
	for _, site := range w.sites {
		for line := range strings.Lines(w.must(site, "", "walk", "/run")) {
			mode, path, _ := strings.Cut(strings.TrimSpace(line), " ")
			if !strings.Contains(path, "guywire") {
				continue
			}
			if len(mode) != 10 || mode[7:] != "---" {
				t.Errorf("%s of %s has mode %s", path, site, mode)
			}
		}
	}
}
