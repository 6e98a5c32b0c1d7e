package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// listen opens the control socket.
func (s *supervisor) listen() error {
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(s.dir, socketFile), Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("open the control socket: %w", err)
	}
	slots := make(chan struct{}, maxSessions)
	go func() { // runs as long as the process
		for {
			slots <- struct{}{}
			conn, err := l.AcceptUnix()
			if err != nil {
				s.log.Error("control socket is closed", "err", err)
				return
			}
			go func() {
				defer func() { <-slots }()
				s.serve(conn)
			}()
		}
	}()
	return nil
}

// requestWait is how long a client may take to say what it wants, and a node to answer.
const requestWait = 10 * time.Second

func (s *supervisor) serve(conn *net.UnixConn) {
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(requestWait))
	data, files, err := receive(conn)
	if err != nil {
		return
	}
	defer closeAll(files)
	req, err := decodeRequest(data)
	if err != nil {
		_ = answer(conn, failure(err))
		return
	}
	var r reply
	switch req.Op {
	case opExec, opStart, opKill, opDisk, opClock, opPause, opSuspend:
		if err = s.handOn(req, conn, files); err == nil {
			return // the node answers
		}
	case opStop:
		_ = answer(conn, reply{})
		s.stopOnce.Do(func() { close(s.stop) })
		return
	case opStatus:
		r.Status = s.status()
	case opReboot:
		err = s.reboot(req)
	case opTranslate, opUDP:
		err = s.translate(req)
	case opHeal:
		err = s.heal(req)
	default:
		s.mu.Lock()
		r, err = s.change(req)
		s.mu.Unlock()
	}
	if err != nil {
		r = failure(err)
	}
	_ = answer(conn, r) // a client that left needs none
}

// handOn gives the request, its connection and its files to the node.
func (s *supervisor) handOn(req request, conn *net.UnixConn, files []*os.File) error {
	node, ok := s.nodes[req.Node]
	if !ok {
		return fmt.Errorf("%w node %q; `meshlab status` lists the nodes", ErrUnknown, req.Node)
	}
	theirs, err := conn.File()
	if err != nil {
		return err
	}
	defer theirs.Close()
	if err := send(node, req, append([]*os.File{theirs}, files...)...); err != nil {
		return fmt.Errorf("reach node %s: %w; its process has died, run `meshlab down` and `meshlab up`", req.Node, err)
	}
	return nil
}

// ask makes a request of a node.
func (s *supervisor) ask(node string, req request) (reply, error) {
	ours, theirs, err := packetPair()
	if err != nil {
		return reply{}, err
	}
	defer ours.Close()
	err = send(s.nodes[node], req, theirs)
	_ = theirs.Close()
	if err != nil {
		return reply{}, err
	}
	_ = ours.SetReadDeadline(time.Now().Add(requestWait))
	return readReply(ours)
}

// heal undoes the faults of one link, of one node, or with neither of all links and all nodes.
func (s *supervisor) heal(req request) error {
	switch {
	case req.Node != "" && s.nodes[req.Node] == nil:
		return fmt.Errorf("%w node %q; `meshlab status` lists the nodes", ErrUnknown, req.Node)
	case req.Node != "":
		return s.healNode(req.Node)
	}
	var errs []error
	if req.Link == "" {
		for name := range s.nodes {
			errs = append(errs, s.healNode(name))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.change(req)
	return errors.Join(append(errs, err)...)
}

func (s *supervisor) healNode(name string) error {
	r, err := s.ask(name, request{Op: opHeal})
	if err = errors.Join(err, r.err()); err != nil {
		return fmt.Errorf("heal %s: %w", name, err)
	}
	return nil
}

// change carries out a request that changes the network. The caller holds s.mu.
func (s *supervisor) change(req request) (reply, error) {
	f := s.fabric
	switch req.Op {
	case opPartition:
		return reply{}, f.partition(req.Groups)
	case opHeal:
		if req.Link == "" {
			var errs []error
			for _, l := range f.lo.links {
				errs = append(errs, f.heal(f.cables[l.name]))
			}
			return reply{}, errors.Join(errs...)
		}
	}
	link, err := f.lo.link(req.Link)
	if err != nil {
		return reply{}, err
	}
	c := f.cables[link.name]
	ends := []int{0, 1}
	if req.From != "" {
		if req.From != link.ends[0].node && req.From != link.ends[1].node {
			return reply{}, fmt.Errorf("link %s does not end at %s; its ends are %s and %s", link.name, req.From, link.ends[0].node, link.ends[1].node)
		}
		ends = []int{link.end(req.From)}
	}
	switch req.Op {
	case opCut:
		for _, end := range ends {
			if err := f.setCut(c, end, true); err != nil {
				return reply{}, err
			}
		}
		return reply{}, nil
	case opHeal:
		return reply{}, f.heal(c)
	case opCarrier:
		return reply{}, f.carrier(c, req.Up)
	case opImpair:
		return reply{}, f.impair(c, ends, req.Props)
	case opReaddress:
		addrs, err := f.readdress(link, req.Addresses)
		return reply{Addresses: addrs}, err
	default:
		return reply{}, fmt.Errorf("%w request %q; use the meshlab that started the lab", ErrUnknown, req.Op)
	}
}

// reboot switches a router or NAT off and on again.
func (s *supervisor) reboot(req request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.fabric.lo.node(req.Node)
	switch {
	case n == nil:
		return fmt.Errorf("%w node %q; `meshlab status` lists the nodes", ErrUnknown, req.Node)
	case n.kind != Router && n.kind != NAT:
		return fmt.Errorf("%s is a %s and does not reboot; use `meshlab kill --all` and `meshlab start`", n.name, n.kind)
	case s.fabric.off[n.name]:
		return fmt.Errorf("%s is rebooting already; wait for it", n.name)
	}
	if err := s.fabric.power(n, false); err != nil {
		return err
	}
	if req.Duration == 0 {
		req.Duration = defaultDowntime
	}
	req.Duration = max(req.Duration, minDowntime)
	s.mu.Unlock()
	time.Sleep(req.Duration)
	s.mu.Lock()
	return s.fabric.power(s.fabric.lo.node(req.Node), true)
}

// translate makes another kind of box of a NAT.
func (s *supervisor) translate(req request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.fabric.lo.node(req.Node)
	switch {
	case n == nil:
		return fmt.Errorf("%w node %q; `meshlab status` lists the nodes", ErrUnknown, req.Node)
	case n.kind != NAT:
		return fmt.Errorf("%s is a %s and translates nothing; name a nat", n.name, n.kind)
	}
	to := n.spec.Translation
	if req.Op == opUDP {
		to.BlockUDP = !req.Up
	} else {
		to.Mapping = req.Mapping
	}
	return s.fabric.change(n, to)
}

func (s *supervisor) status() *Status {
	s.mu.Lock()
	st := s.fabric.status()
	s.mu.Unlock()
	st.Name, st.Dir = s.name, s.dir
	for i := range st.Nodes {
		n := &st.Nodes[i]
		r, err := s.ask(n.Name, request{Op: opProcesses})
		n.Processes, n.Faults = r.Processes, r.Faults
		if err != nil {
			n.State = "dead"
		}
	}
	return st
}
