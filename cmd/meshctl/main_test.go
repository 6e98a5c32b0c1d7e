package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"guywire/mesh/api"
	"guywire/mesh/api/apitest"
	"guywire/mesh/keyring"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the files in testdata")

// A result is one run of meshctl.
type result struct {
	out, err string
	code     int
}

// meshctl runs a command line against a socket, without a terminal.
func meshctl(ctx context.Context, socket, stdin string, args ...string) result {
	var out, errs bytes.Buffer
	a := &app{
		in: strings.NewReader(stdin), out: &out, err: &errs,
		now: func() time.Time { return apitest.Now }, zone: time.UTC,
	}
	code := a.run(ctx, append([]string{"--socket", socket}, args...))
	return result{out.String(), errs.String(), code}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s: -want +got (rewrite with -rewrite)\n%s", file, d)
	}
}

// Each command's whole output, as text and as JSON.
func TestGolden(t *testing.T) {
	tests := []struct {
		name  string
		args  string
		stdin string
		code  int
		json  bool // has --json
	}{
		{"init", "init --mesh acme", "", 0, true},
		{"token-create", "token create --name oslo-1 --prefix 10.70.0.0/16 --tag office --ttl 1h", "", 0, true},
		{"token-create-any", "token create --prefix any --role operator --site north", "", 0, false},
		{"token-create-none", "token create --uses 3", "", 0, false},
		{"token-list", "token list", "", 0, true},
		{"token-revoke", "token revoke k7m2", "", 0, true},
		{"join", "join", "gw1-token\n", 0, true},
		{"leave", "leave --yes", "", 0, true},
		{"status", "status", "", 7, true},
		{"status-live", "status --check live", "", 0, false},
		{"status-ready", "status --check ready", "", 0, false},
		{"nodes", "nodes", "", 0, true},
		{"nodes-wide", "nodes --wide", "", 0, false},
		{"links", "links", "", 0, true},
		{"links-wide", "links -w", "", 0, false},
		{"links-peer", "links rome-1", "", 0, true},
		{"netcheck", "netcheck", "", 0, true},
		{"netcheck-node", "netcheck kyiv-1", "", 0, false},
		{"routes", "routes", "", 0, true},
		{"routes-successors", "routes --successors", "", 0, false},
		{"drain", "drain lte", "", 0, true},
		{"drain-list", "drain", "", 0, true},
		{"undrain", "undrain berlin-1/lte", "", 0, true},
		{"topology", "topology", "", 0, true},
		{"topology-node", "topology --node rome-1", "", 0, false},
		{"topology-set", "topology set hub --tag core", "", 0, true},
		{"topology-pin", "topology pin paris-1 rome-1", "", 0, true},
		{"node-set", "node set oslo-1 --transit no --cap 4 --tag a --tag b", "", 0, true},
		{"node-set-roles", "node set oslo-1 --role operator --site north", "", 0, false},
		{"revoke", "revoke rome-1 --yes", "", 0, true},
		{"grant", "grant oslo-1 10.70.0.0/16 --shared 10.99.0.0/24", "", 0, true},
		{"grant-none", "grant oslo-1 --none", "", 0, false},
		{"reserve", "reserve oslo-2 10.86.0.20", "", 0, true},
		{"reserve-list", "reserve", "", 0, true},
		{"unreserve", "unreserve oslo-2", "", 0, true},
		{"operator-list", "operator list", "", 0, true},
		{"operator-remove", "operator remove ann", "", 0, true},
		{"settings", "settings", "", 0, true},
		{"settings-set", "settings --voters 3 --cache-max-age 720h", "", 0, false},
		{"raft-status", "raft status", "", 0, true},
		{"raft-recover", "raft recover", "", 0, true},
		{"raft-recover-yes", "raft recover --yes", "", 0, true},
		{"audit", "audit", "", 0, true},
		{"audit-all", "audit --all --from 2", "", 0, false},
		{"ca", "ca", "", 0, true},
		{"ca-rotate", "ca rotate", "", 0, true},
		{"ping", "ping paris-1 -c 4", "", 0, true},
		{"path", "path berlin-1 oslo-lab-with-a-long-name-7", "", 0, true},
		{"events", "events", "", 0, true},
		{"events-since", "events --since 10m", "", 0, false},
		{"exit-codes", "help exit-codes", "", 0, false},
		{"help", "help", "", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			socket := apitest.Serve(t, apitest.New())
			r := meshctl(t.Context(), socket, tt.stdin, strings.Fields(tt.args)...)
			if r.code != tt.code {
				t.Errorf("exit code %d, want %d: %s", r.code, tt.code, r.err)
			}
			text := r.out
			if r.err != "" {
				text += "--- standard error ---\n" + r.err
			}
			golden(t, tt.name+".txt", stable(text))
			if !strings.Contains(tt.args, "-w") && !strings.HasPrefix(tt.args, "help") && !strings.HasPrefix(tt.args, "events") {
				for line := range strings.Lines(r.out) {
					if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > screen {
						t.Errorf("a line has %d columns: %s", n, line)
					}
				}
			}
			if !tt.json {
				return
			}
			r = meshctl(t.Context(), socket, tt.stdin, append(strings.Fields(tt.args), "--json")...)
			if r.code != tt.code {
				t.Errorf("--json: exit code %d, want %d: %s", r.code, tt.code, r.err)
			}
			checkDocuments(t, r.out)
			golden(t, tt.name+".json", stable(r.out))
		})
	}
}

// checkDocuments fails unless out is JSON documents with a schema number.
func checkDocuments(t *testing.T, out string) {
	t.Helper()
	n := 0
	for d := json.NewDecoder(strings.NewReader(out)); ; n++ {
		var doc map[string]any
		if err := d.Decode(&doc); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("not JSON: %v\n%s", err, out)
		}
		if doc["schema"] != float64(api.SchemaNumber) {
			t.Errorf("a document without schema: %v", doc)
		}
	}
	if n == 0 {
		t.Error("no document")
	}
}

// stable replaces the one value that the server measures itself.
func stable(out string) string {
	out = regexp.MustCompile(`"elapsed_ms":[0-9.e-]+,"kind":"ready"`).ReplaceAllString(out, `"elapsed_ms":0,"kind":"ready"`)
	return regexp.MustCompile(`(?m)^ +[0-9.]+ s  in mesh`).ReplaceAllString(out, "   0.00 s  in mesh")
}

func TestErrors(t *testing.T) {
	live := apitest.Serve(t, apitest.New())
	refusing := func(code api.Code) string {
		b := apitest.New()
		b.Err = api.Errorf(code, "do this", "It is so")
		return apitest.Serve(t, b)
	}
	none := filepath.Join(t.TempDir(), "none")
	tests := []struct {
		socket, args, stdin string
		code                int
		want                string // whole standard error; "…" stands for anything
	}{
		{none, "status", "", 3, "meshctl: meshd is not running here (no socket " + none + ")\n  next: start it with: meshd --config /etc/guywire/meshd.yaml\n"},
		{none, "status --check live", "", 3, "meshctl: meshd is not running here…"},
		{none, "events --follow", "", 3, "meshctl: meshd is not running here…"},
		{refusing(api.CodeTokenUsed), "join", "tok", 4, "meshctl: It is so\n  next: do this\n"},
		{refusing(api.CodeForbidden), "init", "", 4, "meshctl: It is so\n  next: do this\n"},
		{refusing(api.CodeNotFound), "path a b", "", 5, "meshctl: It is so\n  next: do this\n"},
		{refusing(api.CodeNoLeader), "token create", "", 6, "meshctl: It is so\n  next: do this\n"},
		{refusing(api.CodeEnrolled), "join", "tok", 8, "meshctl: It is so\n  next: do this\n"},
		{refusing(api.CodeInternal), "nodes", "", 1, "meshctl: It is so\n  next: do this\n"},
		{refusing(api.CodeNotEnrolled), "links --json", "", 8, `{"error":{"code":"not-enrolled","message":"It is so","next":"do this"}}` + "\n"},
		{live, "links nowhere", "", 5, "meshctl: There is no link to nowhere\n  next: meshctl nodes lists all nodes\n"},
		{live, "token revoke zz", "", 5, "meshctl: There is no token zz\n  next: see meshctl token list\n"},
		{live, "statsu", "", 2, "meshctl: unknown command \"statsu\" for \"meshctl\"…"},
		{live, "status now", "", 2, "meshctl: unknown command \"now\" for \"meshctl status\"…"},
		{live, "nodes --bad", "", 2, "meshctl: unknown flag: --bad…"},
		{live, "ping", "", 2, "meshctl: accepts 1 arg(s), received 0…"},
		{live, "path", "", 2, "meshctl: accepts between 1 and 2 arg(s), received 0…"},
		{live, "ping paris-1 -i 1ms", "", 2, "meshctl: --interval is 1ms but must be 20ms to 1m\n  next: see meshctl --help\n"},
		{live, "ping paris-1 -W 2m", "", 2, "meshctl: --timeout is 2m but must be 20ms to 1m…"},
		{live, "ping paris-1 -c -1", "", 2, "meshctl: --count is -1 but must be 0 to 100000…"},
		{live, "ping paris-1 -i soon", "", 2, "meshctl: invalid argument \"soon\"…"},
		{live, "token", "", 2, "meshctl: say create, list or revoke…"},
		{live, "token create --ttl 0s", "", 2, "meshctl: --ttl is 0s but must be 1s to 720h…"},
		{live, "token create --uses 0", "", 2, "meshctl: --uses is 0 but must be 1 to 1000…"},
		{live, "token create --prefix any --prefix 10.0.0.0/8", "", 2, "meshctl: \"any\" is not a network…"},
		{live, "token create --role king", "", 2, "meshctl: The request is not valid: role \"king\" is not operator or no-vote\n  next: see meshctl --help, or /v1/openapi.json for programs\n"},
		{live, "node set a --role no-vote --no-roles", "", 2, "meshctl: give --role or --no-roles, not both…"},
		{live, "token create --prefix x", "", 2, "meshctl: \"x\" is not a network…"},
		{live, "init --pool4 10.86/16", "", 2, "meshctl: pool \"10.86/16\" is not a network…"},
		{live, "init --name Berlin", "", 2, "meshctl: The request is not valid: name \"Berlin\" may hold…"},
		{live, "events --since yesterday", "", 2, "meshctl: --since is \"yesterday\"…"},
		{live, "status --check healthy", "", 2, "meshctl: --check is \"healthy\"…"},
		{live, "join", "", 2, "meshctl: there is no token in standard input…"},
		{live, "join", "\n \n", 2, "meshctl: there is no token in standard input…"},
		{live, "join", strings.Repeat("x", 20<<10), 2, "meshctl: read the token from standard input: …"},
		{live, "join tok --file f", "", 2, "meshctl: give the token as an argument or in --file, not both…"},
		{live, "join --file /does/not/exist", "", 2, "meshctl: read the token: open /does/not/exist…"},
		{live, "leave", "", 2, "meshctl: leave asks before it acts: say --yes…"},
		{live, "topology set", "", 2, "meshctl: accepts 1 arg(s), received 0…"},
		{live, "topology set star", "", 2, "meshctl: The request is not valid: mode \"star\" is not auto, full or hub\n  next: see meshctl --help, or /v1/openapi.json for programs\n"},
		{live, "topology set hub", "", 2, "meshctl: The request is not valid: mode hub, and no other, needs the tag of its hubs\n  next: see meshctl --help, or /v1/openapi.json for programs\n"},
		{live, "topology pin a", "", 2, "meshctl: accepts 2 arg(s), received 1…"},
		{live, "topology pin a a", "", 2, "meshctl: The request is not valid: a pair is two different nodes, and a is named twice\n  next: see meshctl --help, or /v1/openapi.json for programs\n"},
		{live, "topology paris-1", "", 2, "meshctl: unknown command \"paris-1\" for \"meshctl topology\"…"},
		{live, "topology --node nowhere", "", 5, "meshctl: There is no node nowhere\n  next: meshctl nodes lists all nodes\n"},
		{live, "node", "", 2, "meshctl: say set…"},
		{live, "node set", "", 2, "meshctl: accepts 1 arg(s), received 0…"},
		{live, "node set a", "", 2, "meshctl: there is nothing to set: say --transit, --cap, --tag, --no-tags, --role, --no-roles or --site…"},
		{live, "node set a --transit maybe", "", 2, "meshctl: --transit is \"maybe\" but must be yes or no…"},
		{live, "node set a --cap many", "", 2, "meshctl: invalid argument \"many\"…"},
		{live, "node set a --tag x --no-tags", "", 2, "meshctl: give --tag or --no-tags, not both…"},
		{live, "raft", "", 2, "meshctl: say status or recover…"},
		{refusing(api.CodeLeaderSeen), "raft recover --yes", "", 8, "meshctl: It is so\n  next: do this\n"},
		{refusing(api.CodeCorrupt), "audit", "", 7, "meshctl: It is so\n  next: do this\n"},
		{refusing(api.CodeLastOperator), "node set a --no-roles", "", 8, "meshctl: It is so\n  next: do this\n"},
		{live, "revoke rome-1", "", 2, "meshctl: revoke asks before it acts: say --yes…"},
		{live, "grant a", "", 2, "meshctl: name the networks, or say --none for none…"},
		{live, "grant a 10.0.0.0/8 --none", "", 2, "meshctl: name the networks, or say --none for none…"},
		{live, "reserve a", "", 2, "meshctl: reserve takes a name and an address, or nothing…"},
		{live, "reserve a b", "", 2, "meshctl: \"b\" is not an address such as 10.86.0.20…"},
		{live, "operator", "", 2, "meshctl: say create, list or remove…"},
		{live, "operator create ann --ttl -1s", "", 2, "meshctl: --ttl is -1s but must be 1s to 87600h…"},
		{live, "operator create ann --ttl 500ms", "", 2, "meshctl: --ttl is 500ms but must be 1s to 87600h…"},
		{live, "settings --voters 2", "", 2, "meshctl: The request is not valid: 2 voters are not 0, 1, 3 or 5\n  next: see meshctl --help, or /v1/openapi.json for programs\n"},
		{live, "settings --cache-max-age -1h", "", 2, "meshctl: --cache-max-age is -1h but must be 1h or more, or 0…"},
		{live, "--on nowhere status", "", 5, "meshctl: There is no node \"nowhere\"\n  next: meshctl nodes lists them\n"},
		{live, "--on paris-1 leave --yes", "", 4, "meshctl: This is done on the machine itself only\n  next: run meshctl on that machine\n"},
		{live, "--on paris-1 raft recover", "", 4, "meshctl: This is done on the machine itself only\n  next: run meshctl on that machine\n"},
		{live, "--server host status", "", 2, "meshctl: --server needs --identity…"},
		{live, "--identity /does/not/exist status", "", 2, "meshctl: read operator credential: open /does/not/exist…"},
		{live, "drain a/b/c", "", 2, "meshctl: The request is not valid: target \"a/b/c\" is not NODE, UPLINK, NODE/UPLINK or UPLINK:NODE/UPLINK\n  next: see meshctl --help, or /v1/openapi.json for programs\n"},
		{live, "drain lte --wait -1s", "", 2, "meshctl: drain can wait for 0s to 1m0s…"},
		{live, "drain lte --wait 2m", "", 2, "meshctl: drain can wait for 0s to 1m0s…"},
		{live, "undrain", "", 2, "meshctl: accepts 1 arg(s), received 0…"},
		{refusing(api.CodeNotFound), "drain lte", "", 5, "meshctl: It is so\n  next: do this\n"},
		{refusing(api.CodeNoLeader), "drain lte", "", 6, "meshctl: It is so\n  next: do this\n"},
		{refusing(api.CodeTopologyRefused), "topology forbid a b", "", 8, "meshctl: It is so\n  next: do this\n"},
	}
	for _, tt := range tests {
		r := meshctl(t.Context(), tt.socket, tt.stdin, strings.Fields(tt.args)...)
		want, open := strings.CutSuffix(tt.want, "…")
		if r.code != tt.code || !strings.HasPrefix(r.err, want) || !open && r.err != want {
			t.Errorf("meshctl %s: exit code %d, want %d\n%s\nwant\n%s", tt.args, r.code, tt.code, r.err, tt.want)
		}
		if r.out != "" {
			t.Errorf("meshctl %s: an error wrote to standard output: %s", tt.args, r.out)
		}
	}
}

func TestTokenSources(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("\n  gw1-file  \nmore\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args        []string
		stdin, want string
		warned      bool
	}{
		{[]string{"join"}, "gw1-stdin\n", "gw1-stdin", false},
		{[]string{"join", "-"}, "gw1-dash", "gw1-dash", false},
		{[]string{"join", "--file", file}, "", "gw1-file", false},
		{[]string{"join", "gw1-arg", "--name", "oslo-1"}, "", "gw1-arg", true},
	} {
		b := apitest.New()
		r := meshctl(t.Context(), apitest.Serve(t, b), tt.stdin, tt.args...)
		calls := b.Calls()
		if r.code != 0 || len(calls) != 1 || calls[0].(api.JoinRequest).Token != tt.want {
			t.Errorf("%v: exit code %d, %+v", tt.args, r.code, calls)
		}
		if warned := strings.Contains(r.err, "shows in ps"); warned != tt.warned {
			t.Errorf("%v: warned %v: %s", tt.args, warned, r.err)
		}
		if strings.Contains(r.out+r.err, tt.want) {
			t.Errorf("%v: the token is printed", tt.args)
		}
	}
}

// A join that fails half way shows the steps it made, then why.
func TestJoinFails(t *testing.T) {
	b := apitest.New()
	b.JoinErr = api.Errorf(api.CodeUnreachable, "open UDP 51800-52799 in the firewall", "No neighbour answered")
	r := meshctl(t.Context(), apitest.Serve(t, b), "tok", "join")
	if r.code != 6 || !strings.Contains(r.out, "admitted as berlin-1") || strings.Contains(r.out, "Next") ||
		r.err != "meshctl: No neighbour answered\n  next: open UDP 51800-52799 in the firewall\n" {
		t.Errorf("got %+v", r)
	}
}

func TestLeaveAsks(t *testing.T) {
	for answer, left := range map[string]bool{"y\n": true, "YES\n": true, "n\n": false, "\n": false, "": false, "yes please\n": false} {
		b := apitest.New()
		socket := apitest.Serve(t, b)
		var out, errs bytes.Buffer
		a := &app{in: strings.NewReader(answer), out: &out, err: &errs, now: time.Now, zone: time.UTC, typed: true}
		code := a.run(t.Context(), []string{"--socket", socket, "leave"})
		if got := len(b.Calls()) == 1; got != left || (code == 0) != left {
			t.Errorf("%q: left %v, exit code %d", answer, got, code)
		}
		if !strings.HasPrefix(errs.String(), "berlin-1 leaves mesh acme: its tunnels, routes, keys and addresses go, and no one reaches 10.20.0.0/16 through it.\nLeave? [y/N] ") {
			t.Errorf("asked %q", errs.String())
		}
	}
}

// Drain says what would move and asks, on a terminal only.
func TestDrainAsks(t *testing.T) {
	for answer, drained := range map[string]bool{"y\n": true, "n\n": false, "": false} {
		b := apitest.New()
		b.DrainedDoc.Draining = b.DrainsDoc.Drains[0]
		var out, errs bytes.Buffer
		a := &app{in: strings.NewReader(answer), out: &out, err: &errs, now: func() time.Time { return apitest.Now }, zone: time.UTC, typed: true}
		code := a.run(t.Context(), []string{"--socket", apitest.Serve(t, b), "drain", "lte", "--wait", "0s"})
		want := []any{api.DrainRequest{Target: "lte", DryRun: true}}
		if drained {
			want = append(want, api.DrainRequest{Target: "lte"})
		}
		if d := cmp.Diff(want, b.Calls()); d != "" || (code == 0) != drained {
			t.Errorf("%q: exit code %d, %s", answer, code, d)
		}
		if !strings.HasPrefix(errs.String(), "This node sends 2 networks over berlin-1/lte: 10.40.0.0/16, 10.50.0.0/16. Nothing stands by for 10.50.0.0/16: that stays unless another way is found.\nDrain? [y/N] ") {
			t.Errorf("asked %q", errs.String())
		}
	}
	b := apitest.New()
	a := &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard, now: time.Now, zone: time.UTC, typed: true}
	if code := a.run(t.Context(), []string{"--socket", apitest.Serve(t, b), "drain", "lte", "--yes"}); code != 0 || len(b.Calls()) != 1 {
		t.Errorf("--yes: exit code %d, %v", code, b.Calls())
	}
}

// What a drain came to, and whether the cable may be pulled.
func TestDrainOutcomes(t *testing.T) {
	for _, tt := range []struct {
		args   string
		change func(*api.Drained)
		code   int
		want   string
	}{
		{"drain lte", func(d *api.Drained) {}, 0, "berlin-1/lte is drained: nothing goes over it, and it can be unplugged.\n    next: meshctl undrain berlin-1/lte after the work\n"},
		{
			"drain kyiv-1", func(d *api.Drained) { d.Draining.Drain = api.Drain{Target: "kyiv-1", Node: "kyiv-1"} }, 0,
			"kyiv-1 is drained: others are reached around it, and it stays reachable.\n    next: meshctl undrain kyiv-1 after the work\n",
		},
		{"drain lte", func(d *api.Drained) { d.Done, d.Draining.Carries = false, make([]netip.Prefix, 3) }, 7, "berlin-1/lte is drained: 3 networks still on the way to other links.\n    next: look again with meshctl drain\n"},
		{"drain lte --wait 0s", func(d *api.Drained) { d.Done, d.Draining.Carries = false, make([]netip.Prefix, 1) }, 0, "berlin-1/lte is drained: 1 network still on the way to other links.\n    next: look again with meshctl drain\n"},
		{
			"drain lte", func(d *api.Drained) {
				d.Draining.Carries = []netip.Prefix{netip.MustParsePrefix("10.50.0.0/16")}
				d.Draining.NoOtherWay = d.Draining.Carries
			}, 7,
			"berlin-1/lte is drained: no other way leads to 10.50.0.0/16; that stays on it.\n    next: make another way first\n",
		},
		{"drain lte --dry-run", func(d *api.Drained) {}, 0, "This node sends nothing over berlin-1/lte.\n"},
		{
			"drain lte --dry-run", func(d *api.Drained) {
				d.Draining.Carries = slices.Repeat([]netip.Prefix{netip.MustParsePrefix("10.50.0.0/16")}, 6)
			}, 0,
			"This node sends 6 networks over berlin-1/lte: 10.50.0.0/16, 10.50.0.0/16, 10.50.0.0/16, 10.50.0.0/16 and 2 more.\n",
		},
	} {
		b := apitest.New()
		tt.change(&b.DrainedDoc)
		r := meshctl(t.Context(), apitest.Serve(t, b), "", strings.Fields(tt.args)...)
		if r.out != tt.want || r.code != tt.code || r.err != "" {
			t.Errorf("%s: exit code %d, want %d\n%s%s\nwant\n%s", tt.args, r.code, tt.code, r.out, r.err, tt.want)
		}
	}
}

// Each row that a drain touches says so, by whom and since when.
func TestDrainedRows(t *testing.T) {
	b := apitest.New()
	lte, kyiv := &b.DrainsDoc.Drains[0].Drain, &b.DrainsDoc.Drains[1].Drain
	b.StatusDoc.Uplinks[1].Drain = lte
	b.LinksDoc.Links[2].Drain, b.LinksDoc.Links[4].Drain, b.LinksDoc.Links[0].Drain = lte, lte, kyiv
	b.LinksDoc.Links[1].Drain = &api.Drain{Target: "berlin-1/fibre:paris-1/wan", By: "rome-1", Since: apitest.Now.Add(-time.Hour)}
	b.NodesDoc.Nodes[1].Drain, b.NodesDoc.Nodes[3].Transit = kyiv, false
	b.NodesDoc.Nodes[4].Drain = &api.Drain{Target: "rome-1", By: "rome-1", Since: apitest.Now.Add(-time.Hour)}
	socket := apitest.Serve(t, b)
	for _, what := range []string{"links", "nodes", "status"} {
		golden(t, what+"-drained.txt", meshctl(t.Context(), socket, "", what).out)
	}
}

// Who is cut off by an operator's word alone is shown as such.
func TestBannedRow(t *testing.T) {
	b := apitest.New()
	n := &b.NodesDoc.Nodes[1]
	n.Reach, n.Banned = api.ReachNone, &api.Ban{By: "paris-1", Since: apitest.Now.Add(-2 * time.Minute)}
	out := meshctl(t.Context(), apitest.Serve(t, b), "", "nodes").out
	if want := "banned since 2 min by word of paris-1, not yet in the log"; !strings.Contains(out, want) {
		t.Errorf("no %q in\n%s", want, out)
	}
}

// Only what was named is asked for.
func TestNodeSet(t *testing.T) {
	for args, want := range map[string]api.NodeRequest{
		"--transit=yes":     {Transit: new(true)},
		"--transit no":      {Transit: new(false)},
		"--cap 0":           {MaxDegree: new(0)},
		"--tag b --tag a":   {Tags: &api.List[string]{"b", "a"}},
		"--no-tags":         {Tags: &api.List[string]{}},
		"--cap 9 --no-tags": {MaxDegree: new(9), Tags: &api.List[string]{}},
	} {
		b := apitest.New()
		r := meshctl(t.Context(), apitest.Serve(t, b), "", append([]string{"node", "set", "oslo-1"}, strings.Fields(args)...)...)
		want.Node = "oslo-1"
		if d := cmp.Diff([]any{want}, b.Calls()); r.code != 0 || d != "" {
			t.Errorf("%s: exit code %d, %s%s", args, r.code, r.err, d)
		}
	}
}

func TestPairs(t *testing.T) {
	pair := []api.Pair{{A: "a", B: "b"}}
	for verb, want := range map[string]api.PairsRequest{"pin": {Pin: pair}, "unpin": {Unpin: pair}, "forbid": {Forbid: pair}, "allow": {Allow: pair}} {
		b := apitest.New()
		r := meshctl(t.Context(), apitest.Serve(t, b), "", "topology", verb, "a", "b")
		if d := cmp.Diff([]any{want}, b.Calls(), cmpopts.EquateEmpty()); r.code != 0 || d != "" {
			t.Errorf("%s: exit code %d, %s%s", verb, r.code, r.err, d)
		}
	}
}

func TestStatusOfOtherNodes(t *testing.T) {
	fresh := apitest.New()
	fresh.StatusDoc = api.Status{Version: "v0.1.0", Started: apitest.Now.Add(-time.Minute), Health: api.NewHealth(), Uplinks: fresh.StatusDoc.Uplinks[:1]}
	r := meshctl(t.Context(), apitest.Serve(t, fresh), "", "status")
	golden(t, "status-not-enrolled.txt", r.out)
	if r.code != 0 {
		t.Errorf("exit code %d", r.code)
	}
	r = meshctl(t.Context(), apitest.Serve(t, fresh), "", "status", "--check", "ready")
	if r.code != 7 || r.out != "not ready: this node is in no mesh\n" {
		t.Errorf("got %+v", r)
	}

	well := apitest.New()
	well.StatusDoc.Health = api.NewHealth()
	well.StatusDoc.Kernel = api.Revision{Wanted: 9, Applied: 8, Since: new(apitest.Now.Add(-3 * time.Second)), Error: "add route 10.30.0.0/16: no buffer space"}
	well.StatusDoc.Ready = false
	many := well.NodesDoc.Nodes[3]
	for i := range 40 {
		many.Name = fmt.Sprintf("site-%d", i)
		well.NodesDoc.Nodes = append(well.NodesDoc.Nodes, many)
	}
	socket := apitest.Serve(t, well)
	r = meshctl(t.Context(), socket, "", "status")
	golden(t, "status-many.txt", r.out)
	if r.code != 0 {
		t.Errorf("exit code %d", r.code)
	}
	r = meshctl(t.Context(), socket, "", "status", "--check", "ready")
	if r.code != 7 || r.out != "not ready: add route 10.30.0.0/16: no buffer space\n" {
		t.Errorf("got %+v", r)
	}
}

func TestUnreachedPath(t *testing.T) {
	b := apitest.New()
	b.PathDoc.Reached, b.PathDoc.Why = false, "paris-1 has no route to 10.86.0.5/32"
	b.PathDoc.Hops = b.PathDoc.Hops[:2]
	b.PathDoc.Hops[0].Agrees = new(false)
	r := meshctl(t.Context(), apitest.Serve(t, b), "", "path", "kyiv-1")
	golden(t, "path-stops.txt", r.out)
	if r.code != 6 {
		t.Errorf("exit code %d", r.code)
	}
	if q := b.Calls()[0]; q != (api.PathQuery{To: "kyiv-1"}) {
		t.Errorf("asked %+v", q)
	}
}

func TestPingWithoutAnswer(t *testing.T) {
	b := apitest.New()
	b.Replies = b.Replies[2:3]
	r := meshctl(t.Context(), apitest.Serve(t, b), "", "ping", "paris-1")
	if r.code != 6 || !strings.HasSuffix(r.out, "1 sent, 0 answered, 100 % lost\n") {
		t.Errorf("got %+v", r)
	}
}

// Ctrl-C ends an endless ping with its summary.
func TestPingInterrupted(t *testing.T) {
	b := apitest.New()
	b.Hold = make(chan struct{})
	ctx, interrupt := context.WithCancel(t.Context())
	var errs bytes.Buffer
	out := &watcher{want: "path changed", seen: interrupt}
	a := &app{in: strings.NewReader(""), out: out, err: &errs, now: time.Now, zone: time.UTC}
	if code := a.run(ctx, []string{"--socket", apitest.Serve(t, b), "ping", "paris-1", "-c", "0"}); code != 0 || errs.Len() > 0 {
		t.Errorf("exit code %d: %s", code, errs.String())
	}
	if !strings.HasSuffix(out.String(), "4 sent, 3 answered, 25 % lost; RTT min 12.4, mean 24.4, max 48.0 ms; the path changed once\n") {
		t.Errorf("got %s", out.String())
	}
}

// A watcher keeps what is written and calls seen once want is in it.
type watcher struct {
	bytes.Buffer
	want string
	seen func()
}

func (w *watcher) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if strings.Contains(w.String(), w.want) {
		w.seen()
	}
	return n, err
}

// A follower sees a restart of the daemon and misses nothing.
func TestEventsFollowAcrossARestart(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	first := apitest.New()
	first.Hold = make(chan struct{})
	first.EventsDoc = first.EventsDoc[:2]
	stop := apitest.ServeAt(t, first, socket)
	second := apitest.New()
	second.Hold = make(chan struct{})

	ctx, interrupt := context.WithCancel(t.Context())
	out := &watcher{want: "1 prefix of rome-1 moved", seen: interrupt}
	errs := &watcher{want: "waiting for it", seen: func() { apitest.ServeAt(t, second, socket) }}
	restart := &watcher{want: "link-down"}
	restart.seen = func() { go stop() }
	a := &app{in: strings.NewReader(""), out: io.MultiWriter(restart, out), err: errs, now: time.Now, zone: time.UTC}
	if code := a.run(ctx, []string{"--socket", socket, "events", "--follow"}); code != 0 {
		t.Fatalf("exit code %d: %s", code, errs.String())
	}
	for _, once := range []string{"kyiv-1 is not reached", "Link to rome-1", "1 prefix of rome-1 moved"} {
		if strings.Count(out.String(), once) != 1 {
			t.Errorf("%q is not there once:\n%s", once, out.String())
		}
	}
}

func TestVersion(t *testing.T) {
	r := meshctl(t.Context(), apitest.Serve(t, apitest.New()), "", "version")
	if want := api.BuildVersion().String(); r.code != 0 || r.out != "meshctl  "+want+"\nmeshd    "+want+"\n" {
		t.Errorf("got %+v", r)
	}
	r = meshctl(t.Context(), filepath.Join(t.TempDir(), "none"), "", "version")
	if r.code != 0 || !strings.Contains(r.out, "meshd    – (meshd is not running here") {
		t.Errorf("got %+v", r)
	}
	r = meshctl(t.Context(), "", "", "--version")
	if r.code != 0 || r.out != "meshctl "+api.BuildVersion().String()+"\n" {
		t.Errorf("got %+v", r)
	}
}

// What comes from other nodes can not steer the terminal or forge lines, and
// colour is for terminals only.
func TestNothingEscapes(t *testing.T) {
	b := apitest.New()
	evil := "x\x1b[2J\nmeshctl: all is well\r\x9b"
	b.NodesDoc.Nodes[0].Name = evil
	b.LinksDoc.Links[0].Reason = evil
	b.StatusDoc.Health = api.NewHealth(api.Finding{Level: api.Down, Sentence: evil, Next: evil})
	b.EventsDoc[0].Sentence = evil
	b.PathDoc.Hops[0].Kernel = evil
	b.Replies[0].Path = evil
	b.Steps[0].Sentence = evil
	socket := apitest.Serve(t, b)
	b.Shape.Hub, b.Shape.Pinned[0].A, b.Shape.Nodes[0].Neighbours[0].Reason = evil, evil, evil
	b.DrainsDoc.Drains[0].Drain.By, b.DrainedDoc.Draining.Drain.Target = evil, evil
	b.LinksDoc.Links[1].Drain, b.NodesDoc.Nodes[1].Drain = &b.DrainedDoc.Draining.Drain, &b.DrainedDoc.Draining.Drain
	b.RoutesDoc.Routes[1].Feasibility.Neighbours[0].Peer = evil
	b.CheckDoc.Pairs[0].Peer, b.CheckDoc.Pairs[0].Reason, b.CheckDoc.Uplinks[0].Servers[0].Node, b.CheckDoc.Advice[0].Sentence = evil, evil, evil, evil
	for _, args := range []string{"status", "nodes", "links", "links -w", "netcheck", "events", "path a b", "ping x", "join", "topology", "drain", "drain x", "drain x --dry-run", "routes -s"} {
		r := meshctl(t.Context(), socket, "tok", strings.Fields(args)...)
		for line := range strings.Lines(r.out + r.err) {
			if strings.ContainsAny(line, "\x1b\r\u009b") || strings.HasPrefix(line, "meshctl: all is well") {
				t.Errorf("%s: %q", args, line)
			}
		}
	}
	var out bytes.Buffer
	a := &app{in: strings.NewReader(""), out: &out, err: &out, now: time.Now, zone: time.UTC, colour: true}
	a.run(t.Context(), []string{"--socket", socket, "links"})
	if !strings.Contains(out.String(), "\x1b[32mup\x1b[0m") {
		t.Errorf("no colour on a terminal:\n%s", out.String())
	}
}

// The shell completes the names of nodes, and a wrong one is told.
func TestNetcheckNames(t *testing.T) {
	socket := apitest.Serve(t, apitest.New())
	for _, verb := range []string{"netcheck", "links"} {
		if r := meshctl(t.Context(), socket, "", "__complete", verb, ""); r.code != 0 || !strings.Contains(r.out, "paris-1\nrome-1\n") {
			t.Errorf("%s: %+v", verb, r)
		}
	}
	if r := meshctl(t.Context(), socket, "", "netcheck", "nobody"); r.code != api.ExitCode(api.Errorf(api.CodeNotFound, "", "")) || !strings.Contains(r.err, "There is no node nobody") {
		t.Errorf("%+v", r)
	}
}

// docs/cli.md names every command, every flag and every exit code.
func TestDocsAreComplete(t *testing.T) {
	b, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	docs := string(b)
	var walk func(path string, c *cobra.Command)
	walk = func(path string, c *cobra.Command) {
		path = strings.TrimSpace(path + " " + c.Name())
		if !strings.Contains(docs, path) {
			t.Errorf("docs/cli.md lacks the command %s", path)
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !strings.Contains(docs, "--"+f.Name) {
				t.Errorf("docs/cli.md lacks the flag --%s of %s", f.Name, path)
			}
		})
		for _, sub := range c.Commands() {
			walk(path, sub)
		}
	}
	for _, c := range (&app{}).root().Commands() {
		if c.Name() != "exit-codes" {
			walk("meshctl", c)
		}
	}
	for _, e := range exitCodes {
		if !strings.Contains(docs, fmt.Sprintf("| %d | %s |", e.code, e.meaning)) {
			t.Errorf("docs/cli.md lacks: | %d | %s |", e.code, e.meaning)
		}
	}
}

// The audit trail is checked here as well: what does not continue is told, with
// the exit code of what is not well.
func TestAuditBreaks(t *testing.T) {
	for name, change := range map[string]func([]api.AuditRecord) []api.AuditRecord{
		"a record was changed": func(l []api.AuditRecord) []api.AuditRecord { l[2].Prev = l[0].Head; return l },
		"a record is missing":  func(l []api.AuditRecord) []api.AuditRecord { return slices.Delete(l, 1, 2) },
	} {
		b := apitest.New()
		b.Records = change(b.Records)
		r := meshctl(t.Context(), apitest.Serve(t, b), "", "audit")
		if r.code != api.ExitDegraded || !strings.Contains(r.err, "does not continue record") {
			t.Errorf("%s: exit code %d, %s", name, r.code, r.err)
		}
	}
	b := apitest.New()
	b.AuditErr = api.Errorf(api.CodeCorrupt, "", "audit record 6: it does not continue the trail")
	r := meshctl(t.Context(), apitest.Serve(t, b), "", "audit")
	if r.code != api.ExitDegraded || strings.Contains(r.err, "are whole") {
		t.Errorf("found by meshd: exit code %d, %s", r.code, r.err)
	}
}

// With --on another node answers.
func TestOn(t *testing.T) {
	far, near := apitest.New(), apitest.New()
	far.RaftDoc.Leader = "far-away"
	near.Others = map[string]string{"paris-1": apitest.Serve(t, far)}
	socket := apitest.Serve(t, near)
	if r := meshctl(t.Context(), socket, "", "--on", "paris-1", "raft", "status"); r.code != 0 || !strings.Contains(r.out, "far-away") {
		t.Errorf("exit code %d: %s%s", r.code, r.out, r.err)
	}
	if r := meshctl(t.Context(), socket, "", "--on", "paris-1", "ping", "rome-1", "-c", "4"); r.code != 0 || len(far.Calls()) != 1 || len(near.Calls()) != 0 {
		t.Errorf("a stream: exit code %d, %v there, %v here: %s%s", r.code, far.Calls(), near.Calls(), r.out, r.err)
	}
	if r := meshctl(t.Context(), socket, "", "--on", "paris-1", "grant", "x", "--none"); r.code != 0 || len(far.Calls()) != 2 {
		t.Errorf("a change: exit code %d, %v: %s", r.code, far.Calls(), r.err)
	}
}

// The file of an operator's key is for its owner, is never replaced, and is
// gone when the mesh does not accept the key.
func TestOperatorCreate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ann.key")
	b := apitest.New()
	r := meshctl(t.Context(), apitest.Serve(t, b), "", "operator", "create", "ann", "--file", file, "--read", "--ttl", "720h")
	calls := b.Calls()
	if r.code != 0 || len(calls) != 1 {
		t.Fatalf("exit code %d, %v: %s", r.code, calls, r.err)
	}
	key, err := keyring.ReadCredential(file)
	if err != nil {
		t.Fatal(err)
	}
	want := api.OperatorRequest{Name: "ann", Key: key.Identity(), Right: api.RightRead, TTLMs: api.Millis(720 * time.Hour)}
	if calls[0] != any(want) || key.Mesh != b.People.Mesh || key.Servers[0] != b.People.Servers[0] || key.Pins[0][0] != 0xab {
		t.Errorf("asked %+v with %v, want %+v", calls[0], key, want)
	}
	if r := meshctl(t.Context(), apitest.Serve(t, b), "", "operator", "create", "ann", "--file", file); r.code != api.ExitUsage || len(b.Calls()) != 1 {
		t.Errorf("a file was replaced: exit code %d, %s", r.code, r.err)
	}
	refused := apitest.New()
	refused.Others = map[string]string{}
	again := filepath.Join(t.TempDir(), "bob.key")
	if r := meshctl(t.Context(), apitest.Serve(t, refuseChanges{refused}), "", "operator", "create", "bob", "--file", again); r.code != api.ExitRefused {
		t.Errorf("exit code %d, %s", r.code, r.err)
	}
	if _, err := os.Stat(again); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key of nobody is left behind: %v", err)
	}
}

// refuseChanges refuses a new operator.
type refuseChanges struct{ *apitest.Backend }

func (refuseChanges) SetOperator(context.Context, api.OperatorRequest) (api.Done, error) {
	return api.Done{}, api.Errorf(api.CodeForbidden, "", "only an operator may do this")
}

// TestCtlNeverShowsSecrets has every command print what it prints: a token shows
// in the answer to token create and nowhere else, and an operator's key never.
func TestCtlNeverShowsSecrets(t *testing.T) {
	const token = "gw1-a-secret-that-must-not-show"
	file := filepath.Join(t.TempDir(), "ann.key")
	socket := apitest.Serve(t, apitest.New())
	if r := meshctl(t.Context(), socket, "", "operator", "create", "ann", "--file", file); r.code != 0 {
		t.Fatal(r.err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	private := regexp.MustCompile(`"private": "([^"]+)"`).FindSubmatch(b)
	if private == nil {
		t.Fatalf("the file has no key: %s", b)
	}
	var everything bytes.Buffer
	for _, args := range []string{
		"join", "join --json", "join --name Bad", "join " + token, "token create --prefix any", "token create --prefix any --json", "token list --json", "token revoke x",
		"operator create bob --file " + filepath.Join(t.TempDir(), "bob.key") + " --json", "operator create ann --file " + file, "operator list --json",
		"--identity " + file + " --server 127.0.0.1:1 status", "--identity " + file + " --server 127.0.0.1:1 --json nodes", "raft status --json", "audit --all --json", "nodes -w", "status --json", "--on x status",
	} {
		r := meshctl(t.Context(), socket, token+"\n", strings.Fields(args)...)
		if strings.HasPrefix(args, "token create") {
			if !strings.Contains(r.out, "gw1-not-a-real-token") || strings.Contains(r.err, "gw1-") {
				t.Errorf("meshctl %s: the token is not alone on standard output: %s%s", args, r.out, r.err)
			}
			continue
		}
		everything.WriteString(r.out + r.err)
	}
	for what, secret := range map[string]string{"the token": token, "an operator's key": string(private[1]), "any token": "gw1-"} {
		if strings.Contains(everything.String(), secret) {
			t.Errorf("%s shows in:\n%s", what, everything.String())
		}
	}
	if everything.Len() < 1000 {
		t.Errorf("the commands print nothing: %s", everything.String())
	}
}
