package netns

import (
	"crypto/rand"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
	"guywire/mesh/api"
)

// Exit codes of meshd, as docs/cli.md lists them.
const (
	meshdConfig   = 2
	meshdState    = 4
	meshdConflict = 8
)

// refused checks that a command ended as documented: with the code, and one
// sentence that says all the words, of which the last belong to the next step.
func refused(t testing.TB, o outcome, code int, words ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("%s: code %d, want %d", o.what, o.code, code)
	}
	var lines []string
	for line := range strings.Lines(o.said) {
		if !strings.HasPrefix(line, "note: ") {
			lines = append(lines, strings.TrimRight(line, "\n"))
		}
	}
	if len(lines) == 0 || !regexp.MustCompile(`^(meshctl|meshd): `).MatchString(lines[0]) ||
		len(lines) > 2 || len(lines) == 2 && !strings.HasPrefix(lines[1], "  next: ") {
		t.Errorf("%s says, instead of one sentence and a next step:\n%s", o.what, o.said)
	}
	for _, word := range words {
		if !strings.Contains(o.said, word) {
			t.Errorf("%s does not say %q:\n%s", o.what, word, o.said)
		}
	}
}

// TestBadTokens lets a machine try tokens that cannot admit it. After all of
// them it is as before, and joins with a good one.
func TestBadTokens(t *testing.T) {
	w := build(t, sites("a", "b", "c"))
	w.mesh("a")
	w.mesh("b")
	clean := w.snapshot("c")

	parse := func(text string) invite.Token {
		t.Helper()
		token, err := invite.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	// forge makes a token that nobody made.
	forge := func(of invite.Token, id mesh.MeshID, servers []netip.AddrPort) string {
		t.Helper()
		var random [invite.RandomSize]byte
		rand.Read(random[:])
		token, err := invite.New(random, id, of.Pins, servers, of.Expires)
		if err != nil {
			t.Fatal(err)
		}
		return token.Text()
	}
	granted := []string{"--prefix", "10.3.0.0/24", "--prefix", "fd86:0:0:3::/64"} // what c asks for
	good, other := w.token("a", append([]string{"--uses", "2"}, granted...)...), w.token("b")
	ours, theirs := parse(good), parse(other)
	short := w.token("a", "--ttl", "1s")

	// One that is used already.
	used := w.token("a", granted...)
	if o := w.join("c", used); o.code != 0 {
		t.Fatalf("%s: %s", o.what, o.said)
	}
	w.must("c", "", "meshctl", "leave", "--yes")
	w.nothingLeft("c", clean)
	w.until("the short token expires", func() string {
		if left := time.Until(parse(short).Expires); left > 0 {
			return left.String()
		}
		return ""
	})

	flip := []byte(good)
	if flip[40] == 'a' {
		flip[40] = 'b'
	} else {
		flip[40] = 'a'
	}
	for _, tt := range []struct {
		name, token string
		flags       []string
		code        int
		words       []string
	}{
		{"used twice", used, nil, api.ExitRefused, []string{"used", "meshctl token create"}},
		{"expired", short, nil, api.ExitRefused, []string{"expired", "meshctl token create"}},
		{"truncated", good[:len(good)-20], nil, api.ExitRefused, []string{"cut off", "paste it whole"}},
		{"mistyped", string(flip), nil, api.ExitRefused, []string{"damaged", "copy it again"}},
		{"no token", "hello", nil, api.ExitRefused, []string{"token", "gw1-"}},
		{"none at all", "", nil, api.ExitUsage, []string{"no token"}},
		{"never made", forge(ours, ours.Mesh, ours.Servers), nil, api.ExitRefused, []string{"no such token", "meshctl token create"}},
		{"of another mesh, or a wrong-key server", forge(theirs, theirs.Mesh, ours.Servers), nil, api.ExitRefused, []string{"does not hold the key", "ask for a new token"}},
		{"a server that is none", forge(ours, ours.Mesh, []netip.AddrPort{netip.AddrPortFrom(w.host("a", false), mesh.ControlPort)}), nil, api.ExitUnreachable, []string{"cannot be reached", "check"}},
		{"name taken", good, []string{"--name", "a"}, api.ExitConflict, []string{"name a is taken", "--name"}},
		{"no name", good, []string{"--name", "Not A Name"}, api.ExitUsage, []string{"Not A Name", "may hold only"}},
		{"network not granted", w.token("a", "--prefix", "10.3.0.0/24"), []string{"--prefix", "10.99.0.0/24"}, api.ExitRefused, []string{"10.99.0.0/24", "--prefix"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := w.of(t)
			refused(t, w.join("c", tt.token, tt.flags...), tt.code, tt.words...)
			w.nothingLeft("c", clean)
		})
	}
	t.Run("network of another site", func(t *testing.T) {
		w := w.of(t)
		lan := w.lans("a")[0].String()
		o := w.ctl("a", "token", "create", "--prefix", lan)
		if o.code == 0 { // if a token may hold it, the join has to fail
			o = w.join("c", strings.TrimSpace(o.out), "--prefix", lan)
		}
		refused(t, o, api.ExitConflict, lan, "a")
		w.nothingLeft("c", clean)
	})
	t.Run("server down", func(t *testing.T) {
		w := w.of(t)
		w.stop("b", "", syscall.SIGTERM)
		refused(t, w.join("c", other), api.ExitUnreachable, "cannot be reached", "check")
		w.nothingLeft("c", clean)
	})
	if o := w.join("c", w.token("a", granted...)); o.code != 0 {
		t.Errorf("behind all that a good token is refused: %s", o.said)
	}
	w.talk("a", "c")
	for _, again := range []outcome{w.join("c", good), w.ctl("c", "init")} {
		refused(t, again, api.ExitConflict, "in a mesh already", "meshctl leave")
	}
	w.talk("a", "c")
}

// TestOverlappingPools has a site whose LAN lies in the mesh's pool.
func TestOverlappingPools(t *testing.T) {
	w := build(t, sites("a", "b {lan: 10.86.7.0/24}"))
	w.mesh("a")
	clean := w.snapshot("b")
	for name, o := range map[string]outcome{
		"init": w.ctl("b", "init"),
		"join": w.join("b", w.token("a")),
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, o, api.ExitConflict, "10.86.7.0/24", "10.86.0.0/16", "meshctl init", "renumber")
		})
	}
	w.nothingLeft("b", clean)
	w.must("b", "", "meshctl", "init", "--pool4", "10.77.0.0/16")
}

// TestLackingMachine starts agents on machines that lack something.
func TestLackingMachine(t *testing.T) {
	w := build(t, sites("a", "b"))
	w.mesh("a")
	token := w.token("a", "--uses", "5", "--prefix", "10.2.0.0/24", "--prefix", "fd86:0:0:2::/64")
	clean := w.snapshot("b")
	w.stop("b", "", syscall.SIGTERM)
	maker := ask[api.Status](w, "a", "status").Dataplane

	for _, tt := range []struct {
		without string
		words   []string
	}{
		{"net-admin", []string{"no right to configure the network", "CAP_NET_ADMIN"}},
		{"tun", []string{"/dev/net/tun", "modprobe"}},
	} {
		t.Run(tt.without, func(t *testing.T) {
			if tt.without == "tun" {
				needUserspace(t, maker)
			}
			w := w.of(t)
			w.start("b", "lacking", insideArgv(t, "without", tt.without, "meshd", "--config", w.config("b"))...)
			defer w.stop("b", "lacking", syscall.SIGTERM)
			w.until("meshd answers", func() string { return w.ctl("b", "status", "--check", "live").said })
			refused(t, w.ctl("b", "init"), api.ExitRefused, tt.words...)
			refused(t, w.join("b", token), api.ExitRefused, tt.words...)
			w.nothingLeft("b", clean)
		})
	}
	t.Run("control port", func(t *testing.T) {
		w := w.of(t)
		w.start("b", "", "meshd", "--config", w.config("b"))
		w.hold("b", "tcp", mesh.ControlPort)
		defer w.stop("b", "holder", syscall.SIGTERM)
		w.until("meshd answers", func() string { return w.ctl("b", "status", "--check", "live").said })
		refused(t, w.ctl("b", "init"), api.ExitConflict, "8686", "in use", "control")
		refused(t, w.join("b", token), api.ExitConflict, "8686", "in use", "control")
		w.nothingLeft("b", clean)
	})
	t.Run("probe port", func(t *testing.T) {
		w := w.of(t)
		w.hold("b", "udp", mesh.ProbePort)
		defer w.stop("b", "holder", syscall.SIGTERM)
		refused(t, w.ctl("b", "init"), api.ExitConflict, "8687", "in use", "stop the program")
		refused(t, w.join("b", token), api.ExitConflict, "8687", "in use", "stop the program")
		w.nothingLeft("b", clean)
	})
	t.Run("half way", func(t *testing.T) {
		needUserspace(t, maker)
		w := w.of(t)
		const log = "/run/guywire/dataplane.log" // opened once the mesh has admitted the node
		w.must("b", "", "mkdir", log)
		defer w.must("b", "", "rmdir", log)
		for _, o := range []outcome{w.ctl("b", "init"), w.join("b", token)} {
			refused(t, o, api.ExitUnexpected, log)
			w.nothingLeft("b", clean)
		}
		w.until("a has forgotten b", func() string {
			if w.member("a", "b") == "" {
				return "b is a member"
			}
			return ""
		})
	})
	t.Run("STUN port", func(t *testing.T) {
		w := w.of(t)
		w.hold("b", "udp", mesh.StunPort)
		defer w.stop("b", "holder", syscall.SIGTERM)
		if o := w.join("b", token); o.code != 0 {
			t.Errorf("a STUN port in use is more than a warning: %s", o.said)
		}
		w.until("a warning", func() string {
			if log := w.log("b", "meshd"); !strings.Contains(log, "level=WARN") || !strings.Contains(log, "STUN is not served") {
				return log
			}
			return ""
		})
		w.talk("a", "b")
	})

	// A member that starts without what it needs says so and ends, and its
	// tunnels carry on.
	w.stop("b", "", syscall.SIGTERM)
	for _, tt := range []struct {
		without string
		code    int
	}{{"net-admin", meshdState}, {"tun", meshdState}} {
		if tt.without == "tun" && maker != "userspace" {
			continue
		}
		refused(t, w.do("b", "", insideArgv(t, "without", tt.without, "meshd", "--config", w.config("b"))...), tt.code)
	}
	w.hold("b", "tcp", mesh.ControlPort)
	refused(t, w.do("b", "", "meshd", "--config", w.config("b")), meshdConflict, "8686", "in use")
	w.talk("a", "b")
}

// needUserspace skips what only happens to tunnels of a process of ours.
func needUserspace(t *testing.T, maker string) {
	t.Helper()
	if maker != "userspace" {
		t.Skipf("tunnels are made by the %s here, without a process and without TUN devices", maker)
	}
}

// hold takes a port on a node.
func (w *world) hold(node, protocol string, port uint16) {
	w.Helper()
	w.start(node, "holder", insideArgv(w, "hold", protocol, netip.AddrPortFrom(netip.IPv6Unspecified(), port).String())...)
	w.until("the port is taken", func() string { return w.listening(node, protocol, port) })
}

// TestBadState starts meshd on state directories and configurations that it
// must not use.
func TestBadState(t *testing.T) {
	w := build(t, sites("a", "b", "c"))
	w.mesh("a")
	w.mesh("b")
	clean := w.snapshot("c")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// write makes a configuration for c.
	write := func(t *testing.T, name, text string) string {
		t.Helper()
		path := filepath.Join(w.dir("c"), name+".yaml")
		must(os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	meshd := func(w *world, config string) outcome {
		w.Helper()
		return w.do("c", "", "meshd", "--config", config)
	}

	t.Run("in no mesh", func(t *testing.T) {
		w := w.of(t)
		for _, o := range []outcome{
			w.ctl("c", "nodes"), w.ctl("c", "links"), w.ctl("c", "routes"), w.ctl("c", "ping", "a"), w.ctl("c", "path", "a"),
			w.ctl("c", "token", "create"), w.ctl("c", "token", "list"), w.ctl("c", "leave", "--yes"),
		} {
			refused(t, o, api.ExitConflict, "in no mesh", "next: ", "meshctl join")
		}
		w.nothingLeft("c", clean)
	})
	t.Run("second agent, same state", func(t *testing.T) {
		w := w.of(t)
		o := meshd(w, write(t, "same-state", "state: "+w.state("c")+"\nsocket: /run/guywire/other.sock\n"))
		refused(t, o, meshdConflict, w.state("c"), "stop")
		w.nothingLeft("c", clean)
	})
	t.Run("second agent, same socket", func(t *testing.T) {
		w := w.of(t)
		o := meshd(w, write(t, "same-socket", "state: "+filepath.Join(w.dir("c"), "other")+"\n"))
		refused(t, o, meshdConflict, "meshd already runs", "/run/guywire/meshd.sock", "stop it first")
		w.nothingLeft("c", clean)
	})

	w.stop("c", "", syscall.SIGTERM)
	down := w.snapshot("c")
	t.Run("readable by others", func(t *testing.T) {
		w := w.of(t)
		must(os.Chmod(w.state("c"), 0o755))
		defer func() { must(os.Chmod(w.state("c"), 0o700)) }()
		refused(t, meshd(w, w.config("c")), meshdState, w.state("c"), "used by others", "chmod 700")
		w.nothingLeft("c", down)
	})
	t.Run("broken configuration", func(t *testing.T) {
		w := w.of(t)
		for name, tt := range map[string]struct {
			text  string
			words []string
		}{
			"syntax":  {"name: c\nprefixes: [10.3.0.0/24\nlog_level: info\n", []string{"syntax.yaml", "line 3"}},
			"value":   {"name: c\n\ndataplane: quantum\n", []string{"line 3", "quantum", "auto", "userspace"}},
			"unknown": {"name: c\nuplink:\n  - interface: eth0\n", []string{"line 2", "uplink", "uplinks"}},
		} {
			o := meshd(w, write(t, name, tt.text))
			if o.code != meshdConfig {
				t.Errorf("%s: code %d, want %d", name, o.code, meshdConfig)
			}
			for _, word := range append(tt.words, "meshd: ") {
				if !strings.Contains(o.said, word) {
					t.Errorf("%s: it does not say %q: %s", name, word, o.said)
				}
			}
			if check := w.do("c", "", "meshd", "--check", "--config", filepath.Join(w.dir("c"), name+".yaml")); check.code != o.code || check.said != o.said {
				t.Errorf("--check says, with code %d: %s", check.code, check.said)
			}
		}
		w.nothingLeft("c", down)
	})
	t.Run("configuration missing", func(t *testing.T) {
		w := w.of(t)
		refused(t, meshd(w, "/nowhere/meshd.yaml"), meshdConfig, "/nowhere/meshd.yaml")
		w.nothingLeft("c", down)
	})
	t.Run("no daemon", func(t *testing.T) {
		w := w.of(t)
		token := w.token("a")
		for _, o := range []outcome{
			w.ctl("c", "init"), w.join("c", token), w.ctl("c", "status"), w.ctl("c", "status", "--check", "live"),
			w.ctl("c", "nodes"), w.ctl("c", "links"), w.ctl("c", "routes"), w.ctl("c", "ping", "a"), w.ctl("c", "path", "a"),
			w.ctl("c", "events"), w.ctl("c", "token", "create"), w.ctl("c", "token", "list"), w.ctl("c", "leave", "--yes"),
		} {
			refused(t, o, api.ExitNotRunning, "/run/guywire/meshd.sock", "next: ")
		}
		w.nothingLeft("c", down)
	})
	t.Run("state of another mesh", func(t *testing.T) {
		w := w.of(t)
		// A membership of b's with keys of a's: two backups in one directory.
		w.stop("a", "", syscall.SIGTERM)
		w.stop("b", "", syscall.SIGTERM)
		config := write(t, "mixed", "name: c\nstate: "+filepath.Join(w.dir("c"), "mixed")+"\n")
		mixed := filepath.Join(w.dir("c"), "mixed")
		must(os.CopyFS(mixed, os.DirFS(w.state("b"))))
		must(os.RemoveAll(filepath.Join(mixed, "keys")))
		must(os.CopyFS(filepath.Join(mixed, "keys"), os.DirFS(filepath.Join(w.state("a"), "keys"))))
		must(filepath.WalkDir(mixed, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				return os.Chmod(path, 0o700)
			}
			if err == nil {
				return os.Chmod(path, 0o600)
			}
			return err
		}))
		refused(t, meshd(w, config), meshdState, mixed, "another")
		if diff := slices.Compare(down, w.snapshot("c")); diff != 0 {
			t.Error("it changed the kernel")
		}
	})
	w.start("c", "", "meshd", "--config", w.config("c"))
	w.until("meshd answers", func() string { return w.ctl("c", "status", "--check", "live").said })
	w.nothingLeft("c", clean)
	w.must("c", "", "meshctl", "init")
}
