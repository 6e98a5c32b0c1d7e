package api

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The kernel tells who is at the other end, with all groups: here, ourselves.
func TestPeerOf(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	peer, err := peerOf(s)
	if err != nil {
		t.Fatal(err)
	}
	if int(peer.PID) != os.Getpid() || int(peer.UID) != os.Geteuid() || int(peer.GID) != os.Getegid() {
		t.Errorf("got %+v", peer)
	}
	want, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, g := range peer.Groups {
		got = append(got, int(g))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("groups %v, want %v", got, want)
	}
}
