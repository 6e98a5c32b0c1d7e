package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"guywire/integration/lab/disk"
)

// Clients, supervisor and nodes speak over Unix sockets of packets. A client sends one request, with its standard files
// if it wants to run something, and reads one reply; the connection's end is the end of what it asked for. Requests
// that belong to a node are handed on to its process together with the connection.

const (
	maxPacket   = 96 << 10 // of JSON; the kernel's default socket buffer holds two
	maxReply    = 16 << 20 // of JSON, in packets
	maxSessions = 256      // connections served at once; more wait
)

// op is what a request asks for.
type op string

const (
	opExec      op = "exec"
	opStart     op = "start"
	opKill      op = "kill"
	opProcesses op = "processes"
	opSignal    op = "signal" // inside a running exec
	opStatus    op = "status"
	opStop      op = "stop"
	opCut       op = "cut"
	opHeal      op = "heal"
	opImpair    op = "impair"
	opCarrier   op = "carrier"
	opPartition op = "partition"
	opReboot    op = "reboot"
	opReaddress op = "readdress"
	opTranslate op = "translate"
	opUDP       op = "udp"
	opSuspend   op = "suspend"
	opDisk      op = "disk"
	opClock     op = "clock"
	opPause     op = "pause"
)

// request is what a client asks for; each op reads the fields it needs.
type request struct {
	Op        op             `json:"op"`
	Node      string         `json:"node,omitempty"`
	Process   string         `json:"process,omitempty"`
	Argv      []string       `json:"argv,omitempty"`
	Dir       string         `json:"dir,omitempty"`
	Term      string         `json:"term,omitempty"`
	Signal    int            `json:"signal,omitempty"`
	All       bool           `json:"all,omitempty"`
	Link      string         `json:"link,omitempty"`
	From      string         `json:"from,omitempty"` // the sending node; empty means both
	Up        bool           `json:"up,omitempty"`
	Groups    [][]string     `json:"groups,omitempty"`
	Props     Properties     `json:"props,omitzero"`
	Duration  time.Duration  `json:"duration,omitempty"`
	Offset    time.Duration  `json:"offset,omitempty"` // of the clock
	Mapping   Mapping        `json:"mapping,omitempty"`
	Disk      disk.Fault     `json:"disk,omitempty"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
}

// reply is the answer.
type reply struct {
	Error     string         `json:"error,omitempty"`
	Kind      string         `json:"kind,omitempty"` // of the error
	Exit      int            `json:"exit,omitempty"`
	PID       int            `json:"pid,omitempty"`
	Processes []Process      `json:"processes,omitempty"`
	Faults    []string       `json:"faults,omitempty"` // of a node
	Status    *Status        `json:"status,omitempty"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
}

func failure(err error) reply { return reply{Error: err.Error(), Kind: errorKind(err)} }

func (r reply) err() error {
	if r.Error == "" {
		return nil
	}
	return &remoteError{text: r.Error, kind: errorKinds[r.Kind]}
}

// send writes v as one packet, with the files.
func send(c *net.UnixConn, v any, files ...*os.File) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > maxPacket {
		return fmt.Errorf("the request has %d bytes; %d are the most, pass long input on stdin", len(data), maxPacket)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(data, rights, nil)
	return err
}

// receive reads one packet and the files that came with it, which belong to the caller. io.EOF is the other end's close.
func receive(c *net.UnixConn) ([]byte, []*os.File, error) {
	data, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*8))
	n, oobn, flags, _, err := c.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, nil, err
	}
	var files []*os.File
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range msgs {
		fds, rightsErr := unix.ParseUnixRights(&m)
		err = errors.Join(err, rightsErr)
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("packet is too large")
	}
	if err != nil {
		closeAll(files)
		return nil, nil, fmt.Errorf("receive: %w", err)
	}
	return data[:n], files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// decodeRequest reads a request. It accepts nothing that later code would have to check again.
func decodeRequest(data []byte) (request, error) {
	var r request
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("decode request: %w", err)
	}
	if r.Op == opExec && (len(r.Argv) == 0 || r.Argv[0] == "") {
		return r, errors.New("no command was given; write it behind --")
	}
	if r.Signal < 0 || r.Signal > 64 {
		return r, fmt.Errorf("there is no signal %d", r.Signal)
	}
	if !r.Disk.Known() {
		return r, fmt.Errorf("a disk cannot fail with %s; it can with %v", r.Disk, disk.Faults)
	}
	if r.Duration < 0 || r.Duration > 10*time.Minute {
		return r, fmt.Errorf("%v is too long; use up to 10m", r.Duration)
	}
	return r, nil
}

// answer writes the reply, in as many packets as it needs. The caller closes the connection, which ends it.
func answer(c *net.UnixConn, r reply) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	for len(data) > 0 {
		n := min(len(data), maxPacket)
		if _, err := c.Write(data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// readReply reads the reply until the other end closes.
func readReply(c *net.UnixConn) (reply, error) {
	var data []byte
	for {
		part, files, err := receive(c)
		closeAll(files)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return reply{}, err
		}
		if data = append(data, part...); len(data) > maxReply {
			return reply{}, errors.New("the reply is too large")
		}
	}
	if len(data) == 0 {
		return reply{}, io.ErrUnexpectedEOF
	}
	var r reply
	if err := json.Unmarshal(data, &r); err != nil {
		return reply{}, fmt.Errorf("decode reply: %w", err)
	}
	return r, nil
}

// packetPair returns the two ends of a new connection, the second as a file for another process.
func packetPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "peer")
	ours, err := packetConn(os.NewFile(uintptr(fds[0]), "self"))
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// packetConn makes a connection of a file, which it closes.
func packetConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use descriptor %s: %w", f.Name(), err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("descriptor %s is not a Unix socket", f.Name())
	}
	return uc, nil
}
