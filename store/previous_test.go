package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"
)

// What version 1 wrote, to the byte.
const (
	previousSnapshot = "guywire-state 1 9e8c870cc5651a4a9d4dcabefb985d490d8c3d8f1e34473a039484373d0cbe6f\n" +
		`{"version":1,"index":8,"mesh":{"id":"aa01000000000000","name":"acme","pool4":"10.86.0.0/16","pool6":"fd01:203:405::/48","ca":[[1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]],"roots":["MA=="],"secret":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},"nodes":{"0f7b2b949de8e49d":{"id":"0f7b2b949de8e49d","name":"hub","identity":"tXp1cb+wsiz923uYTIOgdshgndhk3xqXBRdVA5glOew=","keys":[{"epoch":1,"public":"UQGDknxYIGKIaqMV6zdjsU8OAjVMj5qISVL+0wqJtw8="}],"addr4":"10.86.0.1","addr6":"fd01:203:405::1","prefixes":["192.168.1.0/24"],"joined":"2026-05-01T12:00:00Z","control":["203.0.113.1:8686"],"voter":true,"request":""},"d9c861c3264dbde6":{"id":"d9c861c3264dbde6","name":"oslo","identity":"NgC8dCovJ1/vcbqP1slE4Rg9Pvvla7+y4DOb3cprgBI=","keys":[{"epoch":1,"public":"zgHHoP5g7Ehgwa39LyamwIctUqFys7kT0gw9rllreSI="}],"addr4":"10.86.0.2","addr6":"fd01:203:405::2","prefixes":["192.168.5.0/24"],"tags":["branch","site"],"joined":"2026-05-01T12:00:00Z","control":["203.0.113.9:8686"],"request":"r-oslo"}},"tokens":{"60r30c1h":{"id":"60r30c1h","key":"ly4xqAhsKHbtUmU0EAdhKn5l7kQcwKYNKZcgzpryPSE=","expires":"2026-05-01T13:00:00Z","uses":0,"tags":["branch","site"],"created":"2026-05-01T12:00:00Z"},"60r30c1j":{"id":"60r30c1j","key":"sAL+IpfFjkBKvfPA6tQuqdaOH+Yd7GyoUUJktPTZKVY=","expires":"2026-05-01T13:00:00Z","uses":0,"created":"2026-05-01T12:00:00Z"},"60r30c1k":{"id":"60r30c1k","key":"DlHBRdPp3s7FYp+GB/PIROXpu+6Cp9m13wE3yDpXv1I=","expires":"2026-05-01T13:00:00Z","uses":1,"created":"2026-05-01T12:00:00Z"}},"removed":{"d3bc0e4f56009e1e":{"name":"bergen","identity":"qRxZEf5VfzBgbq7a2bEKDlzt9Q/O+eLCVPVJ/IeU4GM=","keys":[{"epoch":1,"public":"D7+cAec4DUDHgRzf8eSXoBCYaYC6hi1jy95UmHx8dSg="}],"addr4":"10.86.0.3","addr6":"fd01:203:405::3","revoked":true,"at":"2026-05-01T12:00:00Z"}}}`
	previousCommand = `{"version":1,"now":"2026-05-01T12:00:00Z","by":{"operator":true,"node":"0f7b2b949de8e49d"},"grant":{"node":"d9c861c3264dbde6","prefixes":["192.168.5.0/24","192.168.9.0/24"]}}`
)

// TestGolden plays to each version's state the commands of that version, as
// they were written when it was the newest: every byte of what comes of them
// is as it was then.
func TestGolden(t *testing.T) {
	read := func(version int, what string) []byte {
		b, err := os.ReadFile(fmt.Sprintf("testdata/golden/%d.%s", version, what))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for version := 2; version <= Version; version++ {
		before := read(version, "before")
		s, err := Restore(before)
		if err != nil {
			t.Fatalf("version %d: %v", version, err)
		}
		if again, err := Snapshot(s); err != nil || !bytes.Equal(again, before) {
			t.Errorf("version %d: written again otherwise: %v", version, err)
		}
		applied := 0
		for line := range bytes.Lines(read(version, "commands")) {
			line = bytes.TrimSuffix(line, []byte("\n"))
			c, err := DecodeCommand(line)
			if err != nil {
				t.Fatalf("version %d: %v", version, err)
			}
			if again, err := EncodeCommand(c); err != nil || !bytes.Equal(again, line) {
				t.Errorf("version %d: written again as %v\n%s", version, err, again)
			}
			var r Result
			if s, r = Apply(s, s.Index+1, c); r.Refused == nil {
				applied++
			}
		}
		if after, err := Snapshot(s); err != nil || !bytes.Equal(after, read(version, "after")) || applied < 10 {
			t.Errorf("version %d: %d commands came to another state than in their time: %v", version, applied, err)
		}
	}
}

// A node that is upgraded takes up the snapshot and the log of the version
// before, and writes for those that are not upgraded yet until an operator
// asks for something new.
func TestPreviousVersion(t *testing.T) {
	s, err := Restore([]byte(previousSnapshot))
	if err != nil {
		t.Fatal(err)
	}
	oslo, ok := s.NodeByName("oslo")
	if !ok || oslo.NoTransit || oslo.MaxDegree != 0 || oslo.Drained() != nil || !s.Mesh.Topology.IsZero() || len(oslo.Tags) != 2 {
		t.Errorf("restored as %+v", oslo)
	}
	again, err := Snapshot(s)
	if err != nil || string(again) != previousSnapshot {
		t.Errorf("written again as %v\n%s", err, again)
	}
	grant, err := DecodeCommand([]byte(previousCommand))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := EncodeCommand(grant); err != nil || string(b) != previousCommand {
		t.Errorf("written again as %v\n%s", err, b)
	}
	s, r := Apply(s, 9, grant)
	if r.Refused != nil || len(s.Nodes[oslo.ID].Prefixes) != 2 {
		t.Errorf("%+v", r)
	}
	drain := Command{Version: Version, Now: testNow, By: grant.By, SetDrain: &SetDrain{Node: oslo.ID, Drain: true}}
	for index, version := range []byte{'2', '1'} { // drained, and back
		if s, r = Apply(s, 10+uint64(index), drain); r.Refused != nil {
			t.Fatal(r.Refused)
		}
		b, err := Snapshot(s)
		if err != nil || !bytes.HasPrefix(b, fmt.Appendf(nil, "guywire-state %c ", version)) {
			t.Errorf("%v: %.40s is not of version %c", err, b, version)
		}
		restored(t, s)
		drain.SetDrain = &SetDrain{Node: oslo.ID}
	}
}

// A version 1 command must not hold what version 1 did not know, or voters of
// two versions would disagree about it.
func TestOldVersionOfNewCommand(t *testing.T) {
	w := oldWorld(t)
	for _, c := range policyCommands(w.root.id(), newJoiner("x", "x").id()) {
		c = w.by(c)
		c.Version = 1
		w.refused(CodeInvalid, c)
		b, err := EncodeCommand(c)
		if err != nil || !bytes.HasPrefix(b, []byte(`{"version":2,`)) {
			t.Errorf("%v: %.40s", err, b)
		}
		if _, err := DecodeCommand(bytes.Replace(b, []byte(`"version":2`), []byte(`"version":1`), 1)); !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
	}
}
