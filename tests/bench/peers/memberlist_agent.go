// hashicorp/memberlist behind the benchmark's lines: AGENT NAME IP PORT SEED|-
// GOSSIP_KEY holds the key of 32 bytes in base64. Its LAN preset is used as it comes.
package main

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

var output sync.Mutex

func say(words ...interface{}) {
	now := time.Now().UnixNano()
	output.Lock()
	defer output.Unlock()
	fmt.Println(append(words, now)...)
}

// node is the delegate: its value is the node's metadata, "v padding".
type node struct {
	mutex sync.Mutex
	value string
}

func (n *node) set(value string) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.value = value
}

func (n *node) NodeMeta(limit int) []byte {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	return []byte(n.value)
}

func (n *node) NotifyMsg([]byte)                {}
func (n *node) GetBroadcasts(int, int) [][]byte { return nil }
func (n *node) LocalState(bool) []byte          { return nil }
func (n *node) MergeRemoteState([]byte, bool)   {}
func (n *node) NotifyJoin(m *memberlist.Node)   { say("J", m.Name) }
func (n *node) NotifyLeave(m *memberlist.Node)  { say("D", m.Name) }
func (n *node) NotifyUpdate(m *memberlist.Node) {
	say("U", m.Name, strings.SplitN(string(m.Meta), " ", 2)[0])
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	name, ip, seed := os.Args[1], os.Args[2], os.Args[4]
	port, err := strconv.Atoi(os.Args[3])
	check(err)
	key, err := base64.StdEncoding.DecodeString(os.Getenv("GOSSIP_KEY"))
	check(err)

	self := &node{value: "- "}
	config := memberlist.DefaultLANConfig()
	config.Name = name
	config.BindAddr, config.BindPort = ip, port
	config.AdvertiseAddr, config.AdvertisePort = ip, port
	config.SecretKey = key
	config.Delegate, config.Events = self, self
	config.LogOutput = io.Discard
	list, err := memberlist.Create(config)
	check(err)
	if seed != "-" {
		_, err = list.Join([]string{seed})
		for tries := 1; err != nil && tries < 10; tries++ { // a join is TCP, and may be lost
			time.Sleep(time.Second)
			_, err = list.Join([]string{seed})
		}
		check(err)
	}
	say("R")

	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) == 3 && words[0] == "SET":
			self.set(words[1] + " " + words[2])
			say("S", words[1])
			go list.UpdateNode(0) // returns once the update was handed to others
		case len(words) == 1 && words[0] == "N":
			say("C", list.NumMembers())
		}
	}
}
